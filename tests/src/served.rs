//! A node with an API server at its loopback address, and agents that watch it.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::apiserver::{ApiServer, Options};
use crate::netns::Netns;
use crate::world::PATIENCE;

/// A namespace with an API server in it.
#[derive(Debug)]
pub struct Served {
    /// The node.
    pub node: Netns,
    /// The API server.
    pub server: ApiServer,
    directory: TempDir,
}

impl Served {
    /// Starts the server.
    ///
    /// # Panics
    /// Without the privileges that namespaces need.
    pub fn new(options: Options) -> Self {
        let node = Netns::new().expect("root may make namespaces");
        let listener = node.enter(|| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("the namespace has a loopback interface");
        let server = ApiServer::serve_on(listener, options);
        let directory = TempDir::new().expect("the directory for temporary files can be written");
        fs::write(directory.path().join("kubeconfig"), server.kubeconfig())
            .expect("the directory is ours");
        Self {
            node,
            server,
            directory,
        }
    }

    /// Creates objects at the server.
    pub fn create(&self, objects: &[Value]) {
        for object in objects {
            self.server.create(object);
        }
    }

    /// The path of a kubeconfig file for the server.
    ///
    /// # Panics
    /// If the directory for temporary files has an odd name.
    pub fn kubeconfig(&self) -> String {
        let path = self.directory.path().join("kubeconfig");
        path.to_str().expect("the path is UTF-8").to_owned()
    }

    /// Starts an agent as node-1.
    pub fn start(&self, args: &[&str]) -> Agent {
        let kubeconfig = self.kubeconfig();
        let own = [
            "-v4",
            "--hostname-override",
            "node-1",
            "--kubeconfig",
            &kubeconfig,
        ];
        Agent::start(&self.node, &[&own, args].concat())
    }

    /// Starts an agent as node-1, and waits until it is in sync.
    pub fn start_in_sync(&self, args: &[&str]) -> Agent {
        let agent = self.start(args);
        agent.wait_for_log("in sync", PATIENCE);
        agent
    }
}
