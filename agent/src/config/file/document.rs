//! The text of a file → its one document, as leniently as kube-proxy reads it: of a key that is there twice the later
//! one counts, and what comes behind the first document does not.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A document, and what is odd about its text.
#[derive(Debug)]
pub(super) struct Document {
    /// What counts of it.
    pub(super) value: Value,
    /// The keys that are there more than once, as paths; of each, the last value counts.
    pub(super) twice: Vec<String>,
    /// Whether other documents follow.
    pub(super) has_more: bool,
}

impl Document {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// Where it is neither.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // JSON may be indented by tabs, which YAML does not allow.
        if let Ok(tree) = serde_json::from_str(text) {
            return Ok(Self::of(tree, false));
        }
        let options = serde_saphyr::options! {
            with_snippet: false,
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        };
        // Empty documents are left out, such as what is behind a `---` at the end.
        let trees: Result<Vec<Tree>, _> = serde_saphyr::from_multiple_with_options(text, options);
        let mut trees = trees.map_err(|error| match error.location() {
            Some(place) => format!(
                "not valid YAML: see line {}, column {}",
                place.line(),
                place.column()
            ),
            None => "not valid YAML".to_owned(),
        })?;
        let has_more = trees.len() > 1;
        trees.truncate(1);
        Ok(Self::of(trees.pop().unwrap_or_default(), has_more))
    }

    fn of(Tree { value, twice }: Tree, has_more: bool) -> Self {
        Self {
            value,
            twice,
            has_more,
        }
    }
}

/// A value, and the paths in it of keys that are there more than once.
#[derive(Debug, Default)]
struct Tree {
    value: Value,
    twice: Vec<String>,
}

impl From<Value> for Tree {
    fn from(value: Value) -> Self {
        let twice = Vec::new();
        Self { value, twice }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Value::Bool(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Number::from_f64(value)
            .map_or(Value::Null, Value::Number)
            .into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let (mut values, mut twice) = (Vec::new(), Vec::new());
        while let Some(tree) = access.next_element::<Tree>()? {
            let index = values.len();
            twice.extend(tree.twice.iter().map(|path| format!("[{index}].{path}")));
            values.push(tree.value);
        }
        let value = Value::Array(values);
        Ok(Tree { value, twice })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let (mut values, mut twice) = (Map::new(), Vec::new());
        while let Some((key, tree)) = access.next_entry::<String, Tree>()? {
            twice.extend(tree.twice.iter().map(|path| format!("{key}.{path}")));
            if values.insert(key.clone(), tree.value).is_some() && !twice.contains(&key) {
                twice.push(key);
            }
        }
        let value = Value::Object(values);
        Ok(Tree { value, twice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_a_key_that_is_there_twice_the_last_value_counts() {
        let check = |text: &str, value: Value, twice: &[&str], has_more: bool| {
            let document = Document::parse(text).unwrap();
            assert_eq!(document.value, value, "{text}");
            assert_eq!(document.twice, twice, "{text}");
            assert_eq!(document.has_more, has_more, "{text}");
        };
        check(
            "a: 1\na: 2\nb: {c: x, d: w, c: z}\na: 3",
            json!({"a": 3, "b": {"c": "z", "d": "w"}}),
            &["a", "b.c"],
            false,
        );
        check(
            "{\n\t\"a\": 1,\n\t\"a\": null}",
            json!({"a": null}),
            &["a"],
            false,
        );
        check(
            "a: [{b: 1, b: 2}]",
            json!({"a": [{"b": 2}]}),
            &["a.[0].b"],
            false,
        );
        check("a: 1.5\n---\n", json!({"a": 1.5}), &[], false);
        check(
            "---\na: -1\n---\n# nothing\n---\n",
            json!({"a": -1}),
            &[],
            false,
        );
        check("a: true\n---\nb: 2\n", json!({"a": true}), &[], true);
        check("", json!(null), &[], false);
    }

    #[test]
    fn what_is_neither_yaml_nor_json_is_refused_with_its_place() {
        let error = Document::parse("a: 1\nb: [\n").unwrap_err();
        assert!(error.starts_with("not valid YAML: see line "), "{error}");
    }
}
