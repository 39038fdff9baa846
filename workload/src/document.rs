//! The schemas of JSON documents: one for each command's `--json`, with a name and a version.
//!
//! Within a version a document may gain fields; none goes, is renamed, or comes to mean something
//! else. Whoever reads one ignores fields that it does not know.

use schemars::JsonSchema;
use schemars::Schema;
use serde_json::{Value, json};

/// The schema of documents of a type: `program` and `command` print them, and their field `schema`
/// is `version`.
pub fn schema<T: JsonSchema>(program: &str, command: &str, version: u32) -> Schema {
    let mut schema = schemars::schema_for!(T);
    schema.insert("$id".to_owned(), json!(format!("urn:vmigrate:{program}:{command}:{version}")));
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    if let Some(own) =
        properties.and_then(|all| all.get_mut("schema")).and_then(Value::as_object_mut)
    {
        own.insert("const".to_owned(), json!(version));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{SCHEMA, Summary};

    #[test]
    fn a_schema_has_a_name_and_its_version_is_a_constant() {
        let schema = schema::<Summary>("workload", "run", SCHEMA);
        assert_eq!(schema.get("$id"), Some(&json!("urn:vmigrate:workload:run:1")));
        let version = schema.pointer("/properties/schema/const");
        assert_eq!(version, Some(&json!(SCHEMA)));
    }
}
