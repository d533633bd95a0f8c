//! The configuration in force as a file for `--config`: what `--write-config-to` writes.

use serde_json::Value;

use super::{Config, check};

impl Config {
    /// The configuration in force, as YAML. The node's name is left out where it is the host's: the file may be for
    /// other hosts.
    pub fn to_yaml(&self) -> String {
        let mut value = self.effective();
        if check::node_name(None).is_ok_and(|name| name == self.node_name) {
            value["hostnameOverride"] = "".into();
        }
        let mut text = String::new();
        write(&mut text, &value, 0);
        text
    }
}

/// Writes a section or a list, each entry on a line of its own. Texts have quotes, so that nothing is taken for another type.
fn write(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                text.push_str(&format!("{indent}{name}:"));
                below(text, value, depth);
            }
        }
        Value::Array(values) => {
            for value in values {
                text.push_str(&format!("{indent}-"));
                below(text, value, depth);
            }
        }
        scalar => text.push_str(&format!("{indent}{scalar}\n")),
    }
}

/// Writes what is behind a name or a dash: on the same line, if it is one value.
fn below(text: &mut String, value: &Value, depth: usize) {
    let is_nested = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => false,
    };
    if is_nested {
        text.push('\n');
        write(text, value, depth + 1);
    } else {
        text.push_str(&format!(" {value}\n"));
    }
}
