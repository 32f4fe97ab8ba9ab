//! The values tried for a field, by its type.

use prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, Value};

/// One value.
pub struct Bad {
    /// The value; `None` clears the field.
    pub value: Option<Value>,
    /// Whether the value equals an unset field.
    pub is_empty: bool,
    /// Whether the value is valid for the type on its own, such as a named enum value: only its
    /// combination with other fields can be wrong.
    pub is_known: bool,
}

impl Bad {
    fn none() -> Self {
        Self {
            value: None,
            is_empty: true,
            is_known: false,
        }
    }

    fn some(field: &FieldDescriptor, value: Value) -> Self {
        Self {
            is_empty: !field.supports_presence() && value == Value::default_value_for_field(field),
            value: Some(value),
            is_known: false,
        }
    }

    fn known(field: &FieldDescriptor, value: Value) -> Self {
        Self {
            is_known: true,
            ..Self::some(field, value)
        }
    }
}

/// Returns all values for a field.
pub fn of(field: &FieldDescriptor) -> Vec<Bad> {
    assert!(!field.is_map(), "{}: no values for maps", field.full_name());
    let mut all = vec![Bad::none()];
    let elements = elements(field);
    if !field.is_list() {
        all.extend(elements);
        return all;
    }
    let elements: Vec<Value> = elements.into_iter().filter_map(|bad| bad.value).collect();
    let once = elements.iter().map(|element| vec![element.clone()]);
    let ends = [elements.first(), elements.last()].into_iter().flatten();
    let often = ends.flat_map(|element| [2, 1000].map(|count| vec![element.clone(); count]));
    let lists = once.chain(often).chain([elements.clone(), Vec::new()]);
    all.extend(lists.map(|list| Bad::some(field, Value::List(list))));
    all
}

/// Returns all values for a singular field, or for an element of a repeated one.
fn elements(field: &FieldDescriptor) -> Vec<Bad> {
    let all = |values: Vec<Value>| values.into_iter().map(|value| Bad::some(field, value));
    match field.kind() {
        Kind::Bool => [false, true]
            .map(|value| Bad::known(field, Value::Bool(value)))
            .into(),
        Kind::Enum(kind) => {
            let named = kind.values().map(|value| value.number());
            let named = named.map(|number| Bad::known(field, Value::EnumNumber(number)));
            let unknown = [9999, -1, i32::MIN, i32::MAX].map(Value::EnumNumber);
            named.chain(all(unknown.into())).collect()
        }
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            let numbers = [i32::MIN, -1, 0, 1, 1 << 16, i32::MAX].map(Value::I32);
            all(numbers.into()).collect()
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => all(integers()).collect(),
        Kind::Uint32 | Kind::Fixed32 => {
            let numbers = [0, 1, 1 << 31, u32::MAX].map(Value::U32);
            all(numbers.into()).collect()
        }
        Kind::Uint64 | Kind::Fixed64 => {
            let numbers = [0, 1, 1 << 32, 1 << 63, u64::MAX].map(Value::U64);
            all(numbers.into()).collect()
        }
        Kind::Double => all(floats().map(Value::F64).into()).collect(),
        Kind::Float => all(floats().map(|f| Value::F32(f as f32)).into()).collect(),
        Kind::String => {
            let texts = texts().into_iter().chain(names());
            let paths = field.parent_message().name() == "FieldMask";
            let texts = texts.chain(if paths { mask_paths() } else { Vec::new() });
            all(texts.map(Value::String).collect()).collect()
        }
        Kind::Bytes => {
            let bytes = [
                Vec::new(),
                vec![0],
                vec![0xff; 32],
                b"NVMeTLSkey-1:01:".repeat(100),
                vec![b'x'; 1 << 20],
            ];
            all(bytes.map(|b| Value::Bytes(Bytes::from(b))).into()).collect()
        }
        Kind::Message(kind) => all(vec![Value::Message(DynamicMessage::new(kind))]).collect(),
    }
}

fn integers() -> Vec<Value> {
    let numbers = [i64::MIN, -1, 0, 1, 7, i64::MAX];
    let wide = [1 << 31, 1 << 32, 1 << 40, -(1 << 31) - 1];
    numbers.into_iter().chain(wide).map(Value::I64).collect()
}

fn floats() -> [f64; 7] {
    let (small, large) = (f64::MIN_POSITIVE, f64::MAX);
    [
        0.0,
        -1.0,
        small,
        large,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ]
}

/// Strings that match no field's format.
fn texts() -> Vec<String> {
    let short = [
        "",
        " ",
        "\0",
        "a\0b",
        "\u{1b}[31m\r\n",
        "\u{fc}\u{1f4be}\u{202e}",
        "../..",
        "/",
        "*",
        "%s%n%1000000d",
        "'; DROP TABLE volumes; --",
        "-1",
    ];
    let long = [1 << 12, 1 << 20].map(|length| "x".repeat(length));
    short.map(str::to_owned).into_iter().chain(long).collect()
}

/// Malformed, or dangling, resource names.
fn names() -> Vec<String> {
    let names = [
        "volumes",
        "volumes/",
        "/volumes/a",
        "volumes/a/b",
        "noSuchThings/a",
        "nvmeSubsystems//nvmeNamespaces/a",
        "nvmeSubsystems/a/nvmeNamespaces/a/b",
        "nvmeRemoteControllers/a/nvmeRemoteNamespaces/bn1",
        "feb98abe-d51f-40c8-b348-2753f3571d3c",
        "00000000-0000-0000-0000-000000000000",
    ];
    let deep = ["a/".repeat(10_000), format!("volumes/{}", "x".repeat(64))];
    names.map(str::to_owned).into_iter().chain(deep).collect()
}

/// Field mask paths: malformed, unknown and read-only ones.
fn mask_paths() -> Vec<String> {
    let paths = ["name.", ".name", "name.name", "spec", "spec.spec", "name"];
    let deep = ["spec.".repeat(10_000), ".".repeat(10_000)];
    deep.into_iter().chain(paths.map(str::to_owned)).collect()
}
