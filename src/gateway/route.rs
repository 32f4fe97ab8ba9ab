//! The route table, from the google.api.http options of the descriptors.

use axum::http::Method;
use axum::http::uri::PathAndQuery;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, Value,
};

use super::template::{Captures, Path, Template};

/// All routes of an API, in order of precedence.
#[derive(Debug)]
pub struct Table {
    routes: Vec<Route>,
}

/// One HTTP method on one path shape.
#[derive(Debug)]
pub struct Route {
    /// The HTTP method.
    pub method: Method,
    /// The rules: usually one. Several lists may share a path, which then merges them.
    pub rules: Vec<Rule>,
}

/// HTTP mapping of one RPC.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The RPC.
    pub rpc: MethodDescriptor,
    /// Path of the RPC in gRPC: `/package.Service/Method`.
    pub grpc_path: PathAndQuery,
    /// Template of the HTTP path.
    pub template: Template,
    /// The part of the request in the HTTP body.
    pub body: Body,
}

/// The part of a request in the HTTP body.
#[derive(Debug, Clone)]
pub enum Body {
    /// Nothing.
    None,
    /// Everything but the fields in the path.
    All,
    /// This field, a message.
    Field(FieldDescriptor),
}

/// The routes of a method and a path.
#[derive(Debug)]
pub enum Found<'a> {
    /// A route, with the captures of each of its rules.
    Route(Vec<(&'a Rule, Captures)>),
    /// The path has routes for these other methods only.
    OtherMethods(Vec<Method>),
    /// No route.
    Nothing,
}

impl Table {
    /// Builds the routes of all services that have HTTP options.
    ///
    /// # Errors
    /// The RPC with an option that the gateway does not support.
    pub fn new(pool: &DescriptorPool) -> Result<Table, String> {
        let Some(http) = pool.get_extension_by_name("google.api.http") else {
            return Err("the descriptors do not know google.api.http".to_owned());
        };
        let mut table = Table { routes: Vec::new() };
        for service in pool.services() {
            for rpc in service.methods() {
                for (method, rule) in
                    rules(&rpc, &http).map_err(|why| format!("{}: {why}", rpc.full_name()))?
                {
                    table.add(method, rule);
                }
            }
        }
        table.add_own_paths_of_shared_lists(pool)?;
        if let Some(shared) = table
            .routes
            .iter()
            .find(|r| r.rules.len() > 1 && !r.is_list())
        {
            let path = shared.rules[0].template.shape();
            return Err(format!("{} {path} leads to several RPCs", shared.method));
        }
        table
            .routes
            .sort_by_key(|route| std::cmp::Reverse(route.rules[0].template.precision()));
        Ok(table)
    }

    /// Finds the route of a request's method and path.
    pub fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let Some(path) = Path::parse(path) else {
            return Found::Nothing;
        };
        let mut others = Vec::new();
        let mut shape = None;
        for route in &self.routes {
            let captures = |rule: &Rule| rule.template.captures(&path);
            let template = &route.rules[0].template;
            if template.captures(&path).is_none() {
                continue;
            }
            if route.method == *method {
                let rules = route.rules.iter();
                return Found::Route(rules.filter_map(|r| Some((r, captures(r)?))).collect());
            }
            // A custom verb could also match as the end of an ID. Templates with a verb come first.
            if *shape.get_or_insert_with(|| template.shape()) == template.shape() {
                others.push(route.method.clone());
            }
        }
        if others.is_empty() {
            Found::Nothing
        } else {
            Found::OtherMethods(others)
        }
    }

    /// The routes.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    fn add(&mut self, method: Method, rule: Rule) {
        let shape = rule.template.shape();
        let same = |r: &&mut Route| r.method == method && r.rules[0].template.shape() == shape;
        match self.routes.iter_mut().find(same) {
            Some(route) => route.rules.push(rule),
            None => self.routes.push(Route {
                method,
                rules: vec![rule],
            }),
        }
    }

    /// Also serves each list of a shared path on its own path: `/v1/` and the plural of its resource.
    fn add_own_paths_of_shared_lists(&mut self, pool: &DescriptorPool) -> Result<(), String> {
        let shared = self.routes.iter().filter(|route| route.rules.len() > 1);
        let rules: Vec<Rule> = shared.flat_map(|route| route.rules.clone()).collect();
        for rule in rules {
            let Some(plural) = listed(&rule.rpc.output()).and_then(|m| plural(pool, &m)) else {
                continue;
            };
            let path = match rule.template.fields().next() {
                Some(field) => format!("/v1/{{{field}={plural}}}"),
                None => format!("/v1/{plural}"),
            };
            let template = Template::parse(&path)?;
            self.add(Method::GET, Rule { template, ..rule });
        }
        Ok(())
    }
}

impl Route {
    fn is_list(&self) -> bool {
        self.rules
            .iter()
            .all(|rule| matches!(rule.body, Body::None) && listed(&rule.rpc.output()).is_some())
    }
}

/// The rules of one RPC: its option, and the option's additional bindings.
fn rules(
    rpc: &MethodDescriptor,
    http: &ExtensionDescriptor,
) -> Result<Vec<(Method, Rule)>, String> {
    let options = rpc.options();
    if !options.has_extension(http) {
        return Ok(Vec::new());
    }
    let value = options.get_extension(http);
    let Some(option) = value.as_message() else {
        return Ok(Vec::new());
    };
    if rpc.is_client_streaming() || rpc.is_server_streaming() {
        return Err("streams are not served over HTTP".to_owned());
    }
    let additional = option.get_field_by_name("additional_bindings");
    let additional = additional
        .as_deref()
        .and_then(Value::as_list)
        .unwrap_or_default();
    std::iter::once(option)
        .chain(additional.iter().filter_map(Value::as_message))
        .map(|option| rule(rpc, option))
        .collect()
}

fn rule(rpc: &MethodDescriptor, option: &DynamicMessage) -> Result<(Method, Rule), String> {
    let patterns = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    let text = |field: &str| -> String {
        let value = option.get_field_by_name(field);
        value
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let Some((field, method)) = patterns
        .into_iter()
        .find(|(f, _)| option.has_field_by_name(f))
    else {
        return Err("its HTTP rule has no get, put, post, delete or patch".to_owned());
    };
    if !text("response_body").is_empty() {
        return Err("response_body is not served".to_owned());
    }
    let template = Template::parse(&text(field))?;
    for field in template.fields() {
        let string = resolve(&rpc.input(), field).map(|path| path.last().map(|f| f.kind()));
        if string != Ok(Some(Kind::String)) {
            return Err(format!("{field} of its path is no string of the request"));
        }
    }
    let body = match text("body").as_str() {
        "" => Body::None,
        "*" => Body::All,
        name => match rpc.input().get_field_by_name(name) {
            Some(field) if field.kind().as_message().is_some() && !field.is_list() => {
                Body::Field(field)
            }
            _ => return Err(format!("body {name:?} is no message of the request")),
        },
    };
    let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
    let grpc_path = path.parse().map_err(|error| format!("{path}: {error}"))?;
    Ok((
        method,
        Rule {
            rpc: rpc.clone(),
            grpc_path,
            template,
            body,
        },
    ))
}

/// Resolves a path such as `nvme_subsystem.name` to its fields, each by its proto or JSON name. The error is the
/// unknown part and the message that lacks it.
pub fn resolve(
    message: &MessageDescriptor,
    path: &str,
) -> Result<Vec<FieldDescriptor>, (String, Option<MessageDescriptor>)> {
    let mut inside = Some(message.clone());
    let mut fields = Vec::new();
    for name in path.split('.') {
        let field = inside.as_ref().and_then(|message| {
            let by_name = message.get_field_by_name(name);
            by_name.or_else(|| message.get_field_by_json_name(name))
        });
        let Some(field) = field else {
            return Err((name.to_owned(), inside));
        };
        inside = match field.kind() {
            Kind::Message(message) if !field.is_list() && !field.is_map() => Some(message),
            _ => None,
        };
        fields.push(field);
    }
    Ok(fields)
}

/// The message type of the objects in a list response.
fn listed(answer: &MessageDescriptor) -> Option<MessageDescriptor> {
    let field = answer.fields().find(|field| field.is_list())?;
    field.kind().as_message().cloned()
}

/// The plural of a resource, from its google.api.resource option.
fn plural(pool: &DescriptorPool, message: &MessageDescriptor) -> Option<String> {
    let extension = pool.get_extension_by_name("google.api.resource")?;
    let options = message.options();
    let resource = options.get_extension(&extension);
    let plural = resource.as_message()?.get_field_by_name("plural")?;
    plural.as_str().filter(|p| !p.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn rpcs(method: Method, path: &str) -> Vec<String> {
        let table = Table::new(api::pool()).unwrap();
        match table.find(&method, path) {
            Found::Route(rules) => rules.iter().map(|(r, _)| r.rpc.name().to_owned()).collect(),
            Found::OtherMethods(methods) => methods
                .iter()
                .map(|method| format!("not {method}"))
                .collect(),
            Found::Nothing => Vec::new(),
        }
    }

    #[test]
    fn every_rpc_has_a_route() {
        let table = Table::new(api::pool()).unwrap();
        let mut found: Vec<&str> = table
            .routes()
            .iter()
            .flat_map(|route| route.rules.iter().map(|rule| rule.rpc.full_name()))
            .collect();
        found.sort();
        found.dedup();
        let published = found.iter().filter(|rpc| rpc.starts_with("opi_api."));
        assert_eq!(published.count(), 88);
        let methods = api::pool().services().flat_map(|service| {
            let methods = service.methods().filter(|rpc| !rpc.is_server_streaming());
            methods
                .map(|rpc| rpc.full_name().to_owned())
                .collect::<Vec<_>>()
        });
        let mut all: Vec<String> = methods.filter(|rpc| rpc.starts_with("opi_")).collect();
        all.sort();
        assert_eq!(found, all);
    }

    #[test]
    fn paths_lead_to_their_rpcs() {
        let volume = "/v1/nullVolumes/a";
        assert_eq!(rpcs(Method::GET, volume), ["GetNullVolume"]);
        assert_eq!(rpcs(Method::PATCH, volume), ["UpdateNullVolume"]);
        assert_eq!(rpcs(Method::DELETE, volume), ["DeleteNullVolume"]);
        assert_eq!(
            rpcs(Method::GET, "/v1/nullVolumes/a:stats"),
            ["StatsNullVolume"]
        );
        assert_eq!(
            rpcs(Method::POST, "/v1/nvmeRemoteControllers/r:reset"),
            ["ResetNvmeRemoteController"]
        );
        assert_eq!(
            rpcs(Method::GET, "/v1/inventory/1/inventory/2"),
            ["GetInventory"]
        );
        assert_eq!(
            rpcs(Method::GET, "/v1/virtioScsiLuns"),
            ["ListVirtioScsiLuns"]
        );
    }

    #[test]
    fn lists_that_share_a_path_are_served_together_and_alone() {
        let mut both = rpcs(Method::GET, "/v1/volumes");
        both.sort();
        assert_eq!(both, ["ListEncryptedVolumes", "ListQosVolumes"]);
        assert_eq!(rpcs(Method::GET, "/v1/qosVolumes"), ["ListQosVolumes"]);
        assert_eq!(
            rpcs(Method::GET, "/v1/encryptedVolumes"),
            ["ListEncryptedVolumes"]
        );
        assert_eq!(rpcs(Method::POST, "/v1/qosVolumes"), ["CreateQosVolume"]);
    }

    #[test]
    fn a_wrong_method_is_told_from_a_wrong_path() {
        assert_eq!(
            rpcs(Method::PUT, "/v1/nullVolumes"),
            ["not POST", "not GET"]
        );
        assert_eq!(rpcs(Method::POST, "/v1/nullVolumes/a:stats"), ["not GET"]);
        assert!(rpcs(Method::GET, "/v1/nothing").is_empty());
        assert!(rpcs(Method::GET, "/v1/nullVolumes/").is_empty());
    }
}
