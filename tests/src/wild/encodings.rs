//! What must hold of any bytes that an API server sends in protobuf, and of any object that it sends in both encodings.
//!
//! Uses the agent as a library, and the tests' API server to encode: the two know the messages independently.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use proxyd::model::translate::wire::{self, Message};
use proxyd::model::translate::{node, service, service_cidr, slice};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Choices, NODE, objects};
use crate::apiserver::{in_protobuf, out_of_protobuf};

/// Makes objects of bytes, and compares what the agent makes of them in JSON and in protobuf; then breaks the latter.
/// Reads the bytes themselves too.
///
/// # Panics
/// If the agent's library does, or if the encodings differ.
pub fn check(bytes: &[u8]) {
    read_as_everything(bytes);
    let mut choices = Choices::new(bytes);
    for object in objects(&mut choices) {
        let Some(encoded) = in_protobuf(&object) else {
            continue;
        };
        match object["kind"].as_str() {
            Some("Service") => compare(&object, &encoded, service),
            Some("EndpointSlice") => compare(&object, &encoded, |object| slice(object, NODE)),
            Some("Node") => compare(&object, &encoded, node),
            Some("ServiceCIDR") => compare(&object, &encoded, service_cidr),
            _ => {}
        }
        read_as_everything(&broken(encoded, &mut choices));
    }
}

/// What the agent makes of an object that the API's type can hold is the same in both encodings.
fn compare<K, T>(object: &Value, encoded: &[u8], translate: impl Fn(&K) -> T)
where
    K: DeserializeOwned + Message,
    T: Debug + PartialEq,
{
    if K::deserialize(object).is_err() {
        return;
    }
    // As Go writes it, without what is empty.
    let json = out_of_protobuf(object, encoded).expect("what was encoded can be decoded");
    let of_json = K::deserialize(&json).expect("what goes through protobuf is of its type");
    let of_protobuf = wire::decode(encoded).expect("an object of its type can be decoded");
    assert_eq!(translate(&of_json), translate(&of_protobuf), "{object:#}");
}

/// Some bytes changed, or the end cut off.
fn broken(mut bytes: Vec<u8>, choices: &mut Choices<'_>) -> Vec<u8> {
    for _ in 0..=choices.below(3) {
        let at = usize::from(choices.byte()) << 8 | usize::from(choices.byte());
        let at = at % bytes.len().max(1);
        match choices.below(4) {
            0 => bytes.truncate(at),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = choices.byte();
                }
            }
        }
    }
    bytes
}

/// Reads bytes as everything that an API server may send. What can be decoded can be translated.
fn read_as_everything(bytes: &[u8]) {
    read(bytes, |object: &Service| drop(service(object)));
    read(bytes, |object: &EndpointSlice| drop(slice(object, NODE)));
    read(bytes, |object: &Node| drop(node(object)));
    read(bytes, |object: &ServiceCIDR| drop(service_cidr(object)));
    let _ = wire::metadata(bytes);
    for bytes in [bytes, &[b"k8s\0", bytes].concat()] {
        let _ = (
            wire::watch_event(bytes),
            wire::page(bytes),
            wire::status(bytes),
        );
    }
}

fn read<K: Message>(bytes: &[u8], translate: impl Fn(&K)) {
    match wire::decode(bytes) {
        Ok(object) => translate(&object),
        Err(error) => {
            let complaint = error.complaint();
            assert!(!complaint.field.is_empty() && !complaint.reason.is_empty());
        }
    }
}
