//! The API's HTTP routes, read from the `google.api.http` options.

use opi_spdk::api;
use prost_reflect::MethodDescriptor;

/// Returns HTTP method, path template and body field of an RPC.
pub fn route(rpc: &MethodDescriptor) -> (String, String, String) {
    let http = api::pool()
        .get_extension_by_name("google.api.http")
        .expect("the extension is imported");
    let options = rpc.options();
    let rule = options.get_extension(&http);
    let rule = rule.as_message().expect("a message");
    let text = |name: &str| {
        let value = rule.get_field_by_name(name).expect("a field of HttpRule");
        value.as_str().unwrap_or_default().to_owned()
    };
    let method = ["get", "post", "delete", "patch"]
        .into_iter()
        .find(|method| !text(method).is_empty());
    let method = method.unwrap_or_else(|| panic!("{} has no route", rpc.name()));
    (method.to_uppercase(), text(method), text("body"))
}
