//! Label and field selectors: parsing and matching.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/labels` and `pkg/fields`; which fields a kind can be selected by,
//! and the words of refusal, are those of `pkg/apis/core/v1/conversion.go` and
//! `runtime.DefaultMetaV1FieldSelectorConversion`.

use std::collections::BTreeMap;

use super::resource::{Key, Resource};
use super::status::Status;

/// A `labelSelector`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        split_outside_parentheses(text)
            .into_iter()
            .map(|term| Requirement::parse(&term))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether labels meet every requirement. An absent label meets `!=` and `notin`.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels.get(key).is_some_and(|value| values.contains(value))
            }
            Requirement::NotIn(key, values) => {
                labels.get(key).is_none_or(|value| !values.contains(value))
            }
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }

    /// Whether everything matches.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Requirement {
    fn parse(term: &str) -> Result<Self, Status> {
        let bad = || Status::bad_request(format!("unable to parse requirement: {term}"));
        let word = |text: &str| match text.trim() {
            word if word.is_empty() || word.contains([' ', '(', ')', '!', '=']) => Err(bad()),
            word => Ok(word.to_owned()),
        };
        if let Some((key, value)) = term.split_once("!=") {
            return Ok(Requirement::NotIn(
                word(key)?,
                vec![value.trim().to_owned()],
            ));
        }
        if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            return Ok(Requirement::In(word(key)?, vec![value.trim().to_owned()]));
        }
        if let Some(key) = term.strip_prefix('!') {
            return Ok(Requirement::DoesNotExist(word(key)?));
        }
        let Some((head, values)) = term.split_once('(') else {
            return Ok(Requirement::Exists(word(term)?));
        };
        let values = values.strip_suffix(')').ok_or_else(bad)?;
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => Ok(Requirement::In(word(key)?, values)),
            [key, "notin"] => Ok(Requirement::NotIn(word(key)?, values)),
            _ => Err(bad()),
        }
    }
}

/// Splits at the commas that are not in a list of values.
fn split_outside_parentheses(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut depth = 0;
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if character == ',' && depth == 0 {
            terms.push(String::new());
        } else {
            terms
                .last_mut()
                .expect("starts with one term")
                .push(character);
        }
    }
    terms
        .into_iter()
        .map(|term| term.trim().to_owned())
        .filter(|term| !term.is_empty())
        .collect()
}

/// A `fieldSelector`: each field must, or must not, have a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FieldSelector(Vec<FieldTerm>);

#[derive(Debug, Clone, PartialEq)]
struct FieldTerm {
    field: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Reads `a=b,c==d,e!=f` and refuses fields the kind cannot be selected by. `service_fields` is whether the
    /// server knows `spec.clusterIP` and `spec.type`.
    pub(super) fn parse(
        text: &str,
        resource: Resource,
        service_fields: bool,
    ) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for term in text.split(',').filter(|term| !term.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) =
                term.split_once("==").or_else(|| term.split_once('='))
            {
                (field, value, true)
            } else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            if !known_fields(resource, service_fields).contains(&field) {
                return Err(Status::bad_request(refusal(resource, field)));
            }
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: value.to_owned(),
                equal,
            });
        }
        Ok(Self(terms))
    }

    /// Whether an object matches; `extra` are its selectable fields beyond the key.
    pub(super) fn matches(&self, key: &Key, extra: &[(&'static str, String)]) -> bool {
        self.0.iter().all(|term| {
            let value = match term.field.as_str() {
                "metadata.name" => &key.name,
                "metadata.namespace" => &key.namespace,
                field => extra
                    .iter()
                    .find(|(name, _)| *name == field)
                    .map_or("", |(_, value)| value.as_str()),
            };
            (value == term.value) == term.equal
        })
    }

    /// Whether everything matches.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn known_fields(resource: Resource, service_fields: bool) -> &'static [&'static str] {
    match resource {
        Resource::Services if service_fields => &[
            "metadata.name",
            "metadata.namespace",
            "spec.clusterIP",
            "spec.type",
        ],
        Resource::Nodes => &["metadata.name", "spec.unschedulable"],
        _ => &["metadata.name", "metadata.namespace"],
    }
}

fn refusal(resource: Resource, field: &str) -> String {
    match resource {
        Resource::Services | Resource::Nodes => format!("field label not supported: {field}"),
        _ => format!(
            "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_match_as_kubernetes_does() {
        let labels = BTreeMap::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), String::new()),
        ]);
        for (selector, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app = web", true),
            ("tier=", true),
            ("app!=web", false),
            ("absent!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("absent notin (db)", true),
            ("!absent,app in (web)", true),
            ("!app", false),
            ("absent", false),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&labels), matches, "{selector}");
        }
    }

    #[test]
    fn broken_selectors_are_bad_requests() {
        for selector in ["app in web", "app in (web", "=web", "a b", "app of (web)"] {
            assert_eq!(
                LabelSelector::parse(selector).unwrap_err().code,
                400,
                "{selector}"
            );
        }
        assert_eq!(
            FieldSelector::parse("metadata.name", Resource::Nodes, true)
                .unwrap_err()
                .code,
            400
        );
    }

    #[test]
    fn services_are_selected_by_spec_only_when_the_server_can() {
        let selector =
            FieldSelector::parse("spec.clusterIP!=None", Resource::Services, true).unwrap();
        assert!(!selector.matches(&Key::default(), &[("spec.clusterIP", "None".to_owned())]));
        assert!(selector.matches(
            &Key::default(),
            &[("spec.clusterIP", "10.0.0.1".to_owned())]
        ));
        let refused =
            FieldSelector::parse("spec.clusterIP!=None", Resource::Services, false).unwrap_err();
        assert_eq!(refused.message, "field label not supported: spec.clusterIP");
    }
}
