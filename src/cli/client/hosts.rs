//! `opi-spdk hosts`, `opi-spdk disconnect`.

use super::output::{Form, grid, json_object, structured};
use super::{Connect, Connection, Failure};
use crate::api::own::object_service_client::ObjectServiceClient;
use crate::api::own::{DisconnectHostRequest, Host, HostQueue, ListHostsRequest};
use crate::cli::print;

/// Page size of list requests.
const PAGE: i32 = 250;

/// Collection prefix of subsystem names.
const COLLECTION: &str = "nvmeSubsystems/";

/// `opi-spdk hosts`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct HostsArgs {
    /// The ID or the name of an NVMe subsystem; default: all subsystems
    subsystem: Option<String>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    connect: Connect,
}

/// `opi-spdk disconnect`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_STATUS)]
pub struct DisconnectArgs {
    /// The ID or the name of the NVMe subsystem
    subsystem: String,
    /// The NQN of the host whose connections to the subsystem end
    #[arg(required_unless_present = "controller")]
    host: Option<String>,
    /// End only the connection with this controller ID
    #[arg(long, value_name = "ID")]
    controller: Option<i32>,
    #[command(flatten)]
    connect: Connect,
}

/// Runs `hosts`.
pub(super) async fn hosts(args: HostsArgs) -> Result<(), Failure> {
    let connection = args.connect.connect().await?;
    let parent = args.subsystem.as_deref().map_or_else(String::new, name_of);
    let hosts = all(&connection, &parent).await?;
    let text = match args.output {
        Form::Table => table(&hosts),
        form => structured(
            form,
            hosts.iter().map(json_object).collect::<Result<_, _>>()?,
            false,
        )?,
    };
    print(&text).map_err(Failure::Here)
}

/// Runs `disconnect`.
pub(super) async fn disconnect(args: DisconnectArgs) -> Result<(), Failure> {
    let connection = args.connect.connect().await?;
    let request = DisconnectHostRequest {
        name: name_of(&args.subsystem),
        host_nqn: args.host.unwrap_or_default(),
        controller_id: args.controller,
    };
    let mut client = ObjectServiceClient::new(connection.service());
    let answer = client.disconnect_host(request).await;
    let answer = answer.map_err(|status| Failure::refused(connection.explained(status), None))?;
    let lines = answer.into_inner().hosts.into_iter().map(|host| {
        let shown = format!(
            "{} controller {} of {} at {} disconnected",
            host.subsystem, host.controller_id, host.host_nqn, host.address
        );
        super::failure::plain(&shown) + "\n"
    });
    print(&lines.collect::<String>()).map_err(Failure::Here)
}

/// Lists the hosts of a subsystem, or of all subsystems.
pub(super) async fn all(connection: &Connection, parent: &str) -> Result<Vec<Host>, Failure> {
    let mut client = ObjectServiceClient::new(connection.service());
    let mut request = ListHostsRequest {
        parent: parent.to_owned(),
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut hosts = Vec::new();
    loop {
        let answer = client.list_hosts(request.clone()).await;
        let page = answer.map_err(|status| Failure::refused(connection.explained(status), None))?;
        let page = page.into_inner();
        let is_empty = page.hosts.is_empty();
        hosts.extend(page.hosts);
        if page.next_page_token.is_empty() || is_empty {
            return Ok(hosts);
        }
        request.page_token = page.next_page_token;
    }
}

fn name_of(subsystem: &str) -> String {
    match subsystem.contains('/') {
        true => subsystem.to_owned(),
        false => format!("{COLLECTION}{subsystem}"),
    }
}

fn table(hosts: &[Host]) -> String {
    let column = |header: &str, cell: fn(&Host) -> String| {
        (header.to_owned(), hosts.iter().map(cell).collect())
    };
    grid(vec![
        column("SUBSYSTEM", |of| of.subsystem.replacen(COLLECTION, "", 1)),
        column("CONTROLLER", |of| of.controller_id.to_string()),
        column("HOST", |of| of.host_nqn.clone()),
        column("ADDRESS", |of| of.address.clone()),
        column("QUEUES", |of| queues(&of.queues)),
    ])
}

/// Formats queues: `0:32@0` is the admin queue with 32 entries, on core 0.
fn queues(queues: &[HostQueue]) -> String {
    let shown = queues
        .iter()
        .map(|of| format!("{}:{}@{}", of.id, of.size, of.core));
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_row_with_its_queues() {
        let queue = |id| HostQueue {
            id,
            size: 32,
            core: 1,
            completed_io_count: 0,
        };
        let host = Host {
            subsystem: "nvmeSubsystems/s".to_owned(),
            host_nqn: "nqn.h\u{1b}".to_owned(),
            controller_id: 7,
            address: "127.0.0.1:9".to_owned(),
            queues: vec![queue(0), queue(1)],
            ..Host::default()
        };
        let text = table(&[host]);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split("   ").collect();
        let cells: Vec<&str> = row
            .iter()
            .map(|cell| cell.trim())
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(cells, ["s", "7", "nqn.h", "127.0.0.1:9", "0:32@1 1:32@1"]);
    }

    #[test]
    fn a_subsystem_is_named_by_its_id_or_its_name() {
        assert_eq!(name_of("s"), "nvmeSubsystems/s");
        assert_eq!(name_of("nvmeSubsystems/s"), "nvmeSubsystems/s");
    }
}
