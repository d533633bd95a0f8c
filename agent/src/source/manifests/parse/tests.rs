//! Texts as people and kubectl write them.

use expect_test::{Expect, expect};

use super::*;

/// Parses a text; prints what was found and what was complained about.
fn check(text: &str, expected: Expect) {
    let Contents {
        found, mut errors, ..
    } = file(Path::new("x.yaml"), text);
    let files = [(PathBuf::from("x.yaml"), found)].into();
    let objects = collect(&files, &mut errors);
    let mut lines: Vec<String> = Vec::new();
    lines.extend(
        objects
            .services
            .iter()
            .map(|o| format!("Service {}", name_of(&o.metadata))),
    );
    lines.extend(
        objects
            .slices
            .iter()
            .map(|o| format!("EndpointSlice {}", name_of(&o.metadata))),
    );
    lines.extend(
        objects
            .endpoints
            .iter()
            .map(|o| format!("Endpoints {}", name_of(&o.metadata))),
    );
    lines.extend(
        objects
            .nodes
            .iter()
            .map(|o| format!("Node {}", name_of(&o.metadata))),
    );
    lines.extend(errors.iter().map(|error| format!("error: {error}")));
    expected.assert_eq(&lines.join("\n"));
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n";

#[test]
fn kinds_that_do_not_matter_are_skipped() {
    check(
        "# a comment\n---\nkind: Deployment\napiVersion: apps/v1\n---\napiVersion: v1\nkind: Service\n\
         metadata:\n  name: web\n--- # the next\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n---\n",
        expect![[r#"
            Service default/web
            error: x.yaml, document 4: metadata.name: invalid type: boolean `false`, expected a string"#]],
    );
}

#[test]
fn lists_are_taken_apart_as_kubectl_prints_them() {
    check(
        "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a, namespace: x}\n\
         - apiVersion: discovery.k8s.io/v1\n  kind: EndpointSlice\n  metadata: {name: a-1, namespace: x}\n  \
         addressType: IPv4\n  endpoints: []\nkind: List\n",
        expect![[r#"
            Service x/a
            EndpointSlice x/a-1"#]],
    );
    check(
        r#" {"kind":"ServiceList","apiVersion":"v1","items":[{"kind":"Service","apiVersion":"v1","metadata":{"name":"j"}}]}
            {"kind":"Endpoints","apiVersion":"v1","metadata":{"name":"j"}}"#,
        expect![[r#"
            Service default/j
            Endpoints default/j"#]],
    );
}

#[test]
fn a_bad_document_costs_only_itself() {
    check(
        &format!(
            "a: [\n---\n{SERVICE}---\njust text\n---\n{SERVICE}spec: {{ports: [{{port: many}}]}}\n"
        ),
        expect![[r#"
            Service shop/web
            error: x.yaml, document 1: not valid YAML: unclosed bracket '[' at line 1, column 4
            error: x.yaml, document 3: not a Kubernetes object: `kind` is missing
            error: x.yaml, document 4, Service shop/web: spec.ports[0].port: invalid type: string "many", expected i32"#]],
    );
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {namespace: x}}\n\
         - {apiVersion: v1, kind: Service, metadata: {name: b}}\n- {apiVersion: v1, kind: Service, metadata: {name: b}}\n",
        expect![[r#"
            Service default/b
            error: x.yaml, document 1, item 1: metadata.name: missing
            error: x.yaml, document 1, item 3, Service b: defined already in x.yaml; this one is skipped"#]],
    );
    check(
        "{\"kind\": ",
        expect![
            "error: x.yaml, document 1: not valid JSON: EOF while parsing a value at line 1 column 9"
        ],
    );
}

#[test]
fn a_large_document_is_no_error() {
    let item = "- {apiVersion: v1, kind: ConfigMap, metadata: {name: x}}\n";
    let many = item.repeat(60_000);
    check(
        &format!("kind: List\napiVersion: v1\nitems:\n{many}---\n{SERVICE}"),
        expect!["Service shop/web"],
    );
}

#[test]
fn what_goes_missing_while_a_file_is_bad_stays_in_force() {
    let both = format!("{SERVICE}---\n{}", SERVICE.replace("web", "api"));
    let before = file(Path::new("x.yaml"), &both).found;
    let Contents {
        found: mut now,
        errors,
        ..
    } = file(Path::new("x.yaml"), &format!("{SERVICE}---\na: ["));
    assert_eq!(errors.len(), 1);
    assert!(keep_missing(&mut now, before.clone()));
    let names: Vec<String> = now
        .iter()
        .map(|found| found.object.key().1.to_string())
        .collect();
    assert_eq!(names, ["shop/web", "shop/api"]);
    assert!(!keep_missing(&mut now, before));
}

#[test]
fn every_form_that_tools_print_is_read() {
    check(
        "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: b}}\n",
        expect![[r#"
            Service default/a
            Service default/b"#]],
    );
    check(
        "%YAML 1.2\n---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\n",
        expect!["Service default/c"],
    );
    check(
        r#"{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"name":"d"},"spec":{}}]}"#,
        expect!["Service default/d"],
    );
}

#[test]
fn a_wrong_version_of_a_kind_that_matters_is_told() {
    check(
        "kind: Service\nmetadata: {name: a}\n---\napiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n\
         metadata: {name: b}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: c}\n",
        expect![[r#"
            error: x.yaml, document 1, Service a: apiVersion: "" is not known for a Service; write v1
            error: x.yaml, document 2, EndpointSlice b: apiVersion: "discovery.k8s.io/v1beta1" is not known for an EndpointSlice; write discovery.k8s.io/v1"#]],
    );
}

#[test]
fn a_misspelt_field_is_told() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {x: z}}\n\
         spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocl: UDP}], sesionAffinity: None}\n",
        expect![[r#"
            Service default/a
            error: x.yaml, document 1, Service a: spec.ports[0].protocl: not a known field; it is ignored
            error: x.yaml, document 1, Service a: spec.sesionAffinity: not a known field; it is ignored"#]],
    );
}

#[test]
fn kinds_and_lists_that_were_meant_otherwise_are_not_passed_over() {
    check(
        "apiVersion: v1\nkind: service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitem: []\n\
         ---\napiVersion: v1\nkind: EndpointSlice\nmetadata: {name: b}\n---\napiVersion: v1\nkind: List\nitems: null\n",
        expect![[r#"
            error: x.yaml, document 1, service a: kind: "service" is not known; write Service
            error: x.yaml, document 2: items: not a list of objects
            error: x.yaml, document 3, EndpointSlice b: apiVersion: "v1" is not known for an EndpointSlice; write discovery.k8s.io/v1"#]],
    );
    let contents = file(
        Path::new("x.yaml"),
        "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Pod\n---\n---\n",
    );
    assert_eq!(contents.others, [("Pod".to_owned(), 2)].into());
    assert_eq!((contents.documents, contents.errors.len()), (2, 0));
}
