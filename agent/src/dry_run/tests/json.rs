//! What the BPF maps hold, as JSON: it says what the text says.

use std::net::SocketAddr;

use super::*;

/// Objects that the maps hold something special of: an affinity, and front ends that are for the node itself.
fn shop() -> Objects {
    let shop = json!({
        "metadata": { "name": "shop", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.7", "fd00::7"], "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP", "ports": [{ "name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } },
    });
    let slice = |name: &str, family: &str, address: &str| {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "shop" } },
            "addressType": family, "ports": [{ "name": "dns", "protocol": "UDP", "port": 5353 }],
            "endpoints": [{ "addresses": [address], "nodeName": "node-1" }],
        }))
        .unwrap()
    };
    Objects {
        services: vec![serde_json::from_value(shop).unwrap()],
        slices: vec![
            slice("shop-4", "IPv4", "10.1.0.1"),
            slice("shop-6", "IPv6", "fd00:1::1"),
        ],
        ..Objects::default()
    }
}

#[test]
fn the_maps_are_printed_as_json() {
    let dry_run = run_on(Backend::Ebpf, Output::Json, &shop());
    expect![[r#"
        {
          "node": "node-1",
          "families": [
            {
              "family": "IPv4",
              "nodeAddresses": [
                {
                  "address": "127.0.0.1",
                  "forPods": false
                },
                {
                  "address": "192.168.0.2",
                  "forPods": true
                }
              ],
              "podNetworks": [
                "10.1.0.0/16"
              ],
              "frontends": [
                {
                  "nodePort": 30053,
                  "protocol": "udp",
                  "masquerade": "nobody",
                  "affinitySeconds": 10800,
                  "count": 1,
                  "local": 1,
                  "consistentHashing": false,
                  "backends": [
                    {
                      "index": 0,
                      "address": "10.1.0.1",
                      "port": 5353
                    },
                    {
                      "index": 32768,
                      "address": "10.1.0.1",
                      "port": 5353
                    }
                  ]
                },
                {
                  "address": "10.96.0.7",
                  "port": 53,
                  "protocol": "udp",
                  "masquerade": "outside",
                  "affinitySeconds": 10800,
                  "count": 1,
                  "consistentHashing": false,
                  "backends": [
                    {
                      "index": 0,
                      "address": "10.1.0.1",
                      "port": 5353
                    }
                  ]
                },
                {
                  "address": "203.0.113.7",
                  "port": 53,
                  "protocol": "udp",
                  "masquerade": "nobody",
                  "affinitySeconds": 10800,
                  "count": 1,
                  "local": 1,
                  "consistentHashing": false,
                  "backends": [
                    {
                      "index": 0,
                      "address": "10.1.0.1",
                      "port": 5353
                    },
                    {
                      "index": 32768,
                      "address": "10.1.0.1",
                      "port": 5353
                    }
                  ]
                }
              ]
            },
            {
              "family": "IPv6",
              "nodeAddresses": [],
              "podNetworks": [],
              "frontends": [
                {
                  "nodePort": 30053,
                  "protocol": "udp",
                  "masquerade": "nobody",
                  "affinitySeconds": 10800,
                  "count": 1,
                  "local": 1,
                  "consistentHashing": false,
                  "backends": [
                    {
                      "index": 0,
                      "address": "fd00:1::1",
                      "port": 5353
                    },
                    {
                      "index": 32768,
                      "address": "fd00:1::1",
                      "port": 5353
                    }
                  ]
                },
                {
                  "address": "fd00::7",
                  "port": 53,
                  "protocol": "udp",
                  "masquerade": "outside",
                  "affinitySeconds": 10800,
                  "count": 1,
                  "consistentHashing": false,
                  "backends": [
                    {
                      "index": 0,
                      "address": "fd00:1::1",
                      "port": 5353
                    }
                  ]
                }
              ]
            }
          ]
        }
    "#]]
    .assert_eq(&dry_run.text);
}

#[test]
fn json_says_what_the_text_says() {
    for objects in [Objects::default(), objects(), shop()] {
        let json = run_on(Backend::Ebpf, Output::Json, &objects);
        let text = run_on(Backend::Ebpf, Output::Text, &objects);
        assert_eq!((json.notes, json.is_empty), (text.notes, text.is_empty));
        let document: Value = serde_json::from_str(&json.text).unwrap();
        let families = document["families"].as_array().unwrap();
        let told: Vec<String> = families.iter().flat_map(lines_of).collect();
        let lines = text.text.lines();
        let mut is_inside = false;
        let lines = lines.filter(|line| {
            is_inside = line.starts_with("# BPF maps") || is_inside && line.starts_with("#  ");
            is_inside
        });
        assert_eq!(told, lines.collect::<Vec<_>>());
    }
}

/// The lines that the text has of a family of the document.
fn lines_of(family: &Value) -> Vec<String> {
    let list = |of: &Value, name: &str| of[name].as_array().unwrap().clone();
    let place = |at: &Value| {
        let address: IpAddr = at["address"].as_str()?.parse().unwrap();
        let port = at["port"].as_u64().unwrap().try_into().unwrap();
        Some(SocketAddr::new(address, port).to_string())
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let family_name = text(&family["family"]);
    let mut lines = vec![format!("# BPF maps, {family_name}")];
    for address in list(family, "nodeAddresses") {
        let whose = if address["forPods"] == true {
            ""
        } else {
            " for the node itself"
        };
        lines.push(format!(
            "#   {}: NodePorts{whose}",
            text(&address["address"])
        ));
    }
    let networks = list(family, "podNetworks");
    lines.extend(
        networks
            .iter()
            .map(|net| format!("#   {}: pods", text(net))),
    );
    for frontend in list(family, "frontends") {
        let at = place(&frontend).unwrap_or_else(|| format!("NodePort {}", frontend["nodePort"]));
        let protocol = text(&frontend["protocol"]);
        let mut line = format!("#   {at} {protocol}: back ends: {}", frontend["count"]);
        if let Some(seconds) = frontend.get("affinitySeconds") {
            line += &format!(", each client keeps its own for {seconds} s");
        }
        if let Some(local) = frontend.get("local") {
            line += &format!(", for clients outside {local} here");
        }
        if frontend["consistentHashing"] == true {
            line += ", hashed for clients outside";
        }
        line += match &*text(&frontend["masquerade"]) {
            "everybody" => ", masqueraded",
            "outside" => ", masqueraded for others than pods",
            "nobody" => "",
            other => panic!("{other}"),
        };
        lines.push(line);
        let backends = list(&frontend, "backends");
        lines.extend(
            backends
                .iter()
                .map(|backend| format!("#     {} → {}", backend["index"], place(backend).unwrap())),
        );
    }
    lines
}
