//! Checks the requested ports, and finds the processes that hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Level::Error;
use super::{Report, Running};
use crate::config::Config;
use crate::machine::Machine;

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

pub(super) fn examine(
    machine: &Machine,
    config: &Config,
    running: Option<&Running>,
    report: &mut Report,
) {
    let rpc = config.spdk_rpc.as_ref().and_then(|rpc| rpc.http.as_ref());
    let asked = [
        ("grpc-addr", Some(config.grpc_addr)),
        ("http-addr", Some(config.http_addr)),
        ("spdk-rpc-http", rpc.map(|http| http.address)),
        ("discovery-addr", config.discovery_addr),
    ];
    let listening = listening(machine);
    for (setting, address) in asked {
        let Some(address) = address.filter(|address| address.port() != 0) else {
            continue;
        };
        // A holder that is not visible, for lack of privileges, is assumed to be the running opi-spdk.
        let clashing = listening.iter().find_map(|(other, inode)| {
            let holder = clash(address, *other).then(|| holder(machine, *inode))?;
            let own = running
                .is_some_and(|running| holder.as_ref().is_none_or(|(pid, _)| *pid == running.pid));
            (!own).then_some((other, holder))
        });
        match clashing {
            Some((other, holder)) => {
                let who = holder.map_or("another program".to_owned(), |(pid, name)| {
                    format!("{name} (process {pid})")
                });
                report.add(
                    Error,
                    "ports",
                    format!("{setting} {address}: {who} listens on {other}"),
                    "opi-spdk does not start without its ports",
                    format!("stop it, or choose another address with --{setting}"),
                );
            }
            None if machine.is_here() && is_unavailable(address) => report.add(
                Error,
                "ports",
                format!("{setting} {address}: no interface has that address"),
                "opi-spdk does not start without its ports",
                format!("ip address show, and choose one of them with --{setting}"),
            ),
            None if listening.iter().any(|(other, _)| clash(address, *other)) => {}
            None => report.ok("ports", format!("{setting} {address} is free")),
        }
    }
}

fn is_unavailable(address: SocketAddr) -> bool {
    let any = SocketAddr::new(address.ip(), 0);
    let bound = std::net::TcpListener::bind(any);
    bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
}

fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (any || a.ip() == b.ip())
}

/// Lists the listening sockets with their inodes.
fn listening(machine: &Machine) -> Vec<(SocketAddr, u64)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts = tables.into_iter().filter_map(|table| machine.text(table));
    texts
        .flat_map(|text| text.lines().filter_map(parse).collect::<Vec<_>>())
        .collect()
}

/// Parses a line. Addresses are hexadecimal words in host byte order.
fn parse(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(ip, port), fields.get(9)?.parse().ok()?))
}

/// Finds the process that holds a socket: PID and name.
fn holder(machine: &Machine, inode: u64) -> Option<(i32, String)> {
    let socket = format!("socket:[{inode}]");
    let processes = machine.names("/proc");
    let mut numbers = processes
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let pid = numbers.find(|pid| {
        let dir = format!("/proc/{pid}/fd");
        let files = machine.names(&dir);
        files
            .iter()
            .any(|file| machine.link_name(format!("{dir}/{file}")).as_ref() == Some(&socket))
    })?;
    let name = machine
        .text(format!("/proc/{pid}/comm"))
        .unwrap_or_default();
    Some((pid.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_table_is_an_address_and_an_inode() {
        let line =
            "0: 0100007F:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1";
        let (address, inode) = parse(line).unwrap();
        assert_eq!(
            (address.to_string().as_str(), inode),
            ("127.0.0.1:50051", 4711)
        );
        assert_eq!(parse(&line.replace(" 0A ", " 01 ")), None);
        let line = line.replace("0100007F", "00000000000000000000000001000000");
        assert_eq!(parse(&line).unwrap().0.to_string(), "[::1]:50051");
        assert_eq!(parse("sl local_address rem_address st"), None);
    }

    #[test]
    fn an_address_of_all_interfaces_clashes_with_each() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(clash(at("0.0.0.0:1"), at("127.0.0.1:1")));
        assert!(clash(at("127.0.0.1:1"), at("[::]:1")));
        assert!(!clash(at("127.0.0.1:1"), at("127.0.0.2:1")));
        assert!(!clash(at("0.0.0.0:1"), at("0.0.0.0:2")));
    }
}
