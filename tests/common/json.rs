//! API objects as JSON, accessed by field mask paths.

use serde_json::Value;

/// Returns the value at a path such as `spec.nqn`; null if there is none.
pub fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |inner, part| &inner[part])
}

/// Returns the object with `value` at `path`.
pub fn with(mut object: Value, path: &str, value: Value) -> Value {
    *path
        .split('.')
        .fold(&mut object, |inner, part| &mut inner[part]) = value;
    object
}

/// Returns the object without the field at `path`.
pub fn without(mut object: Value, path: &str) -> Value {
    let (outer, last) = match path.rsplit_once('.') {
        Some((outer, last)) => (outer.split('.').collect(), last),
        None => (Vec::new(), path),
    };
    let inner = outer
        .into_iter()
        .fold(&mut object, |inner, part| &mut inner[part]);
    inner
        .as_object_mut()
        .expect("every field on the path is an object")
        .remove(last);
    object
}

/// Returns an object that has only the field at `path`.
pub fn only(path: &str, value: Value) -> Value {
    path.rsplit('.')
        .fold(value, |inner, part| serde_json::json!({ part: inner }))
}

/// Asserts that every field set in `wanted` has the same value in `object`.
pub fn assert_holds(object: &Value, wanted: &Value) {
    assert!(
        holds(object, wanted),
        "wanted:\n{wanted:#}\ngot:\n{object:#}"
    );
}

fn holds(object: &Value, wanted: &Value) -> bool {
    match wanted {
        Value::Object(fields) => fields
            .iter()
            .all(|(name, value)| holds(&object[name], value)),
        _ => object == wanted,
    }
}
