//! Objects of the API as JSON: reaching into them by the paths that field masks use.

use serde_json::Value;

/// The value at `spec.nqn`; null where there is none.
pub fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |inner, part| &inner[part])
}

/// The object with another value there.
pub fn with(mut object: Value, path: &str, value: Value) -> Value {
    *path
        .split('.')
        .fold(&mut object, |inner, part| &mut inner[part]) = value;
    object
}

/// The object without what is there.
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
        .expect("the way leads through objects")
        .remove(last);
    object
}

/// An object that has only this.
pub fn only(path: &str, value: Value) -> Value {
    path.rsplit('.')
        .fold(value, |inner, part| serde_json::json!({ part: inner }))
}

/// Asserts that all that is set in `wanted` is the same in `object`.
pub fn assert_holds(object: &Value, wanted: &Value) {
    assert!(
        holds(object, wanted),
        "what was set:\n{wanted:#}\nwhat came back:\n{object:#}"
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
