//! The thread that serves: one listener, one runtime, and nothing of either left once it has stopped.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::sync::oneshot;

use super::Shared;
use super::http::handle;

/// A listener at work. Dropping it closes the listener and every connection before it returns.
#[derive(Debug)]
pub(super) struct Serving {
    /// Dropped, it tells the thread to stop.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Serves on a listener, whichever network namespace it is from.
    pub(super) fn start(listener: TcpListener, shared: Arc<Shared>) -> Self {
        listener
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            let listener =
                tokio::net::TcpListener::from_std(listener).expect("the runtime has I/O");
            let listener = listener.tap_io(|connection| {
                // A connection that is closed already tells so when it is used.
                let _ = connection.set_nodelay(true);
            });
            let router = router(shared);
            tokio::select! {
                served = axum::serve(listener, router) => served.expect("serving has no end"),
                _ = stopped => {}
            }
        };
        // A runtime of its own, so that the end of the runtime is the end of every connection.
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .expect("the kernel has an epoll left")
                .block_on(serve);
        };
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(run);
        Self {
            stop: Some(stop),
            thread: Some(thread.expect("the kernel has a thread left")),
        }
    }
}

/// Answers requests.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(handle).with_state(shared)
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; the test notices by its requests.
            let _ = thread.join();
        }
    }
}
