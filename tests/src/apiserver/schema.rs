//! The messages of Kubernetes' protobuf encoding, as tables: which number and type each JSON field has there.
//!
//! Written from `generated.proto` and `types.go` in k8s.io/api and k8s.io/apimachinery: a field whose Go type is no
//! pointer, list or map is always written, zero or not, so that messages are as long as kube-apiserver's. Fields that
//! no test and no agent has are left out of Nodes and Events.

use Kind::{Flag, IntOrString, Json, Message, Number, Quantity, Text, Time};

/// The fields of a message, by number.
pub(super) type Schema = &'static [Field];

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// Its number on the wire.
    pub(super) number: u32,
    /// Its name in JSON.
    pub(super) name: &'static str,
    /// The type of its values.
    pub(super) kind: Kind,
    /// How many values it has.
    pub(super) count: Count,
}

/// The type of a value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    Number,
    Flag,
    /// `meta/v1` Time, which is a text in JSON.
    Time,
    /// A text or a number, in JSON and in a message of its own.
    IntOrString,
    /// A `resource.Quantity`, which is a text in JSON.
    Quantity,
    /// `meta/v1` FieldsV1: any JSON, which a message holds as bytes.
    Json,
    Message(Schema),
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// One, which is zero or empty if JSON has none.
    Always,
    /// One or none: a pointer in Go.
    Maybe,
    /// A list.
    Many,
    /// A map, whose keys are texts.
    Map,
}

const fn always(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::Always,
    }
}

const fn maybe(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::Maybe,
    }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::Many,
    }
}

const fn map(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        count: Count::Map,
    }
}

const OBJECT_META: Schema = &[
    always(1, "name", Text),
    always(2, "generateName", Text),
    always(3, "namespace", Text),
    always(4, "selfLink", Text),
    always(5, "uid", Text),
    always(6, "resourceVersion", Text),
    always(7, "generation", Number),
    always(8, "creationTimestamp", Time),
    maybe(9, "deletionTimestamp", Time),
    maybe(10, "deletionGracePeriodSeconds", Number),
    map(11, "labels", Text),
    map(12, "annotations", Text),
    many(13, "ownerReferences", Message(OWNER_REFERENCE)),
    many(14, "finalizers", Text),
    many(17, "managedFields", Message(MANAGED_FIELDS)),
];

const OWNER_REFERENCE: Schema = &[
    always(1, "kind", Text),
    always(3, "name", Text),
    always(4, "uid", Text),
    always(5, "apiVersion", Text),
    maybe(6, "controller", Flag),
    maybe(7, "blockOwnerDeletion", Flag),
];

const MANAGED_FIELDS: Schema = &[
    always(1, "manager", Text),
    always(2, "operation", Text),
    always(3, "apiVersion", Text),
    maybe(4, "time", Time),
    always(6, "fieldsType", Text),
    maybe(7, "fieldsV1", Json),
    always(8, "subresource", Text),
];

/// `meta/v1` ListMeta.
pub(super) const LIST_META: Schema = &[
    always(1, "selfLink", Text),
    always(2, "resourceVersion", Text),
    always(3, "continue", Text),
    maybe(4, "remainingItemCount", Number),
];

/// `meta/v1` Status.
pub(super) const STATUS: Schema = &[
    always(1, "metadata", Message(LIST_META)),
    always(2, "status", Text),
    always(3, "message", Text),
    always(4, "reason", Text),
    maybe(5, "details", Message(STATUS_DETAILS)),
    always(6, "code", Number),
];

const STATUS_DETAILS: Schema = &[
    always(1, "name", Text),
    always(2, "group", Text),
    always(3, "kind", Text),
    many(4, "causes", Message(STATUS_CAUSE)),
    always(5, "retryAfterSeconds", Number),
    always(6, "uid", Text),
];

const STATUS_CAUSE: Schema = &[
    always(1, "reason", Text),
    always(2, "message", Text),
    always(3, "field", Text),
];

/// `meta/v1` Condition, which Services and ServiceCIDRs have.
const CONDITION: Schema = &[
    always(1, "type", Text),
    always(2, "status", Text),
    always(3, "observedGeneration", Number),
    always(4, "lastTransitionTime", Time),
    always(5, "reason", Text),
    always(6, "message", Text),
];

/// `v1` Service.
pub(super) const SERVICE: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    always(2, "spec", Message(SERVICE_SPEC)),
    always(3, "status", Message(SERVICE_STATUS)),
];

const SERVICE_SPEC: Schema = &[
    many(1, "ports", Message(SERVICE_PORT)),
    map(2, "selector", Text),
    always(3, "clusterIP", Text),
    always(4, "type", Text),
    many(5, "externalIPs", Text),
    always(7, "sessionAffinity", Text),
    always(8, "loadBalancerIP", Text),
    many(9, "loadBalancerSourceRanges", Text),
    always(10, "externalName", Text),
    always(11, "externalTrafficPolicy", Text),
    always(12, "healthCheckNodePort", Number),
    always(13, "publishNotReadyAddresses", Flag),
    maybe(14, "sessionAffinityConfig", Message(AFFINITY_CONFIG)),
    maybe(17, "ipFamilyPolicy", Text),
    many(18, "clusterIPs", Text),
    many(19, "ipFamilies", Text),
    maybe(20, "allocateLoadBalancerNodePorts", Flag),
    maybe(21, "loadBalancerClass", Text),
    maybe(22, "internalTrafficPolicy", Text),
    maybe(23, "trafficDistribution", Text),
];

const SERVICE_PORT: Schema = &[
    always(1, "name", Text),
    always(2, "protocol", Text),
    always(3, "port", Number),
    always(4, "targetPort", IntOrString),
    always(5, "nodePort", Number),
    maybe(6, "appProtocol", Text),
];

const AFFINITY_CONFIG: Schema = &[maybe(
    1,
    "clientIP",
    Message(&[maybe(1, "timeoutSeconds", Number)]),
)];

const SERVICE_STATUS: Schema = &[
    always(
        1,
        "loadBalancer",
        Message(&[many(1, "ingress", Message(INGRESS))]),
    ),
    many(2, "conditions", Message(CONDITION)),
];

const INGRESS: Schema = &[
    always(1, "ip", Text),
    always(2, "hostname", Text),
    maybe(3, "ipMode", Text),
    many(4, "ports", Message(PORT_STATUS)),
];

const PORT_STATUS: Schema = &[
    always(1, "port", Number),
    always(2, "protocol", Text),
    maybe(3, "error", Text),
];

/// `discovery.k8s.io/v1` EndpointSlice.
pub(super) const ENDPOINT_SLICE: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    many(2, "endpoints", Message(ENDPOINT)),
    many(3, "ports", Message(ENDPOINT_PORT)),
    always(4, "addressType", Text),
];

const ENDPOINT: Schema = &[
    many(1, "addresses", Text),
    always(2, "conditions", Message(ENDPOINT_CONDITIONS)),
    maybe(3, "hostname", Text),
    maybe(4, "targetRef", Message(OBJECT_REFERENCE)),
    map(5, "deprecatedTopology", Text),
    maybe(6, "nodeName", Text),
    maybe(7, "zone", Text),
    maybe(8, "hints", Message(ENDPOINT_HINTS)),
];

const ENDPOINT_CONDITIONS: Schema = &[
    maybe(1, "ready", Flag),
    maybe(2, "serving", Flag),
    maybe(3, "terminating", Flag),
];

const ENDPOINT_HINTS: Schema = &[
    many(1, "forZones", Message(NAMED)),
    many(2, "forNodes", Message(NAMED)),
];

const NAMED: Schema = &[always(1, "name", Text)];

const ENDPOINT_PORT: Schema = &[
    maybe(1, "name", Text),
    maybe(2, "protocol", Text),
    maybe(3, "port", Number),
    maybe(4, "appProtocol", Text),
];

const OBJECT_REFERENCE: Schema = &[
    always(1, "kind", Text),
    always(2, "namespace", Text),
    always(3, "name", Text),
    always(4, "uid", Text),
    always(5, "apiVersion", Text),
    always(6, "resourceVersion", Text),
    always(7, "fieldPath", Text),
];

/// `v1` Node.
pub(super) const NODE: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    always(2, "spec", Message(NODE_SPEC)),
    always(3, "status", Message(NODE_STATUS)),
];

const NODE_SPEC: Schema = &[
    always(1, "podCIDR", Text),
    always(2, "externalID", Text),
    always(3, "providerID", Text),
    always(4, "unschedulable", Flag),
    many(5, "taints", Message(TAINT)),
    many(7, "podCIDRs", Text),
];

const TAINT: Schema = &[
    always(1, "key", Text),
    always(2, "value", Text),
    always(3, "effect", Text),
    maybe(4, "timeAdded", Time),
];

const NODE_STATUS: Schema = &[
    map(1, "capacity", Quantity),
    map(2, "allocatable", Quantity),
    always(3, "phase", Text),
    many(4, "conditions", Message(NODE_CONDITION)),
    many(5, "addresses", Message(NODE_ADDRESS)),
    always(6, "daemonEndpoints", Message(DAEMON_ENDPOINTS)),
    always(7, "nodeInfo", Message(NODE_INFO)),
    many(8, "images", Message(IMAGE)),
];

const NODE_CONDITION: Schema = &[
    always(1, "type", Text),
    always(2, "status", Text),
    always(3, "lastHeartbeatTime", Time),
    always(4, "lastTransitionTime", Time),
    always(5, "reason", Text),
    always(6, "message", Text),
];

const NODE_ADDRESS: Schema = &[always(1, "type", Text), always(2, "address", Text)];

const DAEMON_ENDPOINTS: Schema = &[always(
    1,
    "kubeletEndpoint",
    Message(&[always(1, "Port", Number)]),
)];

const NODE_INFO: Schema = &[
    always(1, "machineID", Text),
    always(2, "systemUUID", Text),
    always(3, "bootID", Text),
    always(4, "kernelVersion", Text),
    always(5, "osImage", Text),
    always(6, "containerRuntimeVersion", Text),
    always(7, "kubeletVersion", Text),
    always(8, "kubeProxyVersion", Text),
    always(9, "operatingSystem", Text),
    always(10, "architecture", Text),
];

const IMAGE: Schema = &[many(1, "names", Text), always(2, "sizeBytes", Number)];

/// `networking.k8s.io/v1` ServiceCIDR.
pub(super) const SERVICE_CIDR: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    always(2, "spec", Message(&[many(1, "cidrs", Text)])),
    always(
        3,
        "status",
        Message(&[many(1, "conditions", Message(CONDITION))]),
    ),
];

/// `events.k8s.io/v1` Event.
pub(super) const EVENT: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    always(2, "eventTime", Time),
    maybe(
        3,
        "series",
        Message(&[
            always(1, "count", Number),
            always(2, "lastObservedTime", Time),
        ]),
    ),
    always(4, "reportingController", Text),
    always(5, "reportingInstance", Text),
    always(6, "action", Text),
    always(7, "reason", Text),
    always(8, "regarding", Message(OBJECT_REFERENCE)),
    maybe(9, "related", Message(OBJECT_REFERENCE)),
    always(10, "note", Text),
    always(11, "type", Text),
];

/// `v1` Namespace.
pub(super) const NAMESPACE: Schema = &[
    always(1, "metadata", Message(OBJECT_META)),
    always(2, "spec", Message(&[many(1, "finalizers", Text)])),
    always(3, "status", Message(&[always(1, "phase", Text)])),
];
