//! A connection to QEMU's monitor, shared by concurrent operations.
//!
//! ```text
//! connect ─► greeting ─► qmp_capabilities ─► open ─┬─ nobody uses it any more ─► closed
//!                                                  └─ ends, garbage, stuck ────► broken (for good)
//! ```
//!
//! A task owns the connection. It sends the commands, and routes each answer to its command by ID and each event to
//! all watchers.

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::codec::{Framed, LinesCodec};

use super::address::{Address, Stream};
use super::fault::Fault;
use super::protocol::{self, Event, Greeting, Message, Refusal, Version};

/// Maximum length of a received line, in bytes: far above the answer of a machine with thousands of devices.
const LINE_MAX: usize = 16 << 20;

/// Timeout for writing a command; a running QEMU always reads.
const WRITE: Duration = Duration::from_secs(10);

/// Events queued per watcher.
const EVENTS_MAX: usize = 256;

type Connection = Framed<Box<dyn Stream>, LinesCodec>;
type Answer = Result<Value, Refusal>;

/// An open connection, closed on drop.
pub(super) struct Session {
    version: Version,
    commands: mpsc::Sender<Command>,
    events: broadcast::Receiver<Event>,
    broken: Arc<OnceLock<String>>,
}

struct Command {
    execute: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Answer>,
}

/// Waits for `future` until the deadline. `late` is the error after it.
pub(super) async fn with_deadline<T>(
    deadline: Instant,
    late: &str,
    future: impl Future<Output = T>,
) -> Result<T, Fault> {
    let result = tokio::time::timeout_at(deadline.into(), future).await;
    result.map_err(|_| Fault::Late(late.to_owned()))
}

impl Session {
    /// Connects and negotiates capabilities.
    pub(super) async fn connect(address: &Address, deadline: Instant) -> Result<Self, Fault> {
        let late = format!("the monitor at {address} did not take the connection");
        let stream = with_deadline(deadline, &late, address.connect()).await?;
        let stream = stream.map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Fault::Absent {
                address: address.to_string(),
                source,
            },
            _ => Fault::Broken(format!(
                "QEMU's monitor at {address} cannot be reached: {source}"
            )),
        })?;
        let mut connection = Framed::new(stream, LinesCodec::new_with_max_length(LINE_MAX));

        let late = format!(
            "the monitor at {address} did not greet (has it another client? It serves one at a time)"
        );
        let line = with_deadline(deadline, &late, next_line(&mut connection)).await?;
        let greeting = line.and_then(|line| Greeting::parse(&line));
        let greeting =
            greeting.map_err(|why| Fault::Broken(format!("no QMP at {address}: {why}")))?;

        let (commands, queue) = mpsc::channel(16);
        let (sender, events) = broadcast::channel(EVENTS_MAX);
        let broken = Arc::<OnceLock<String>>::default();
        let note = Arc::clone(&broken);
        let address = address.to_string();
        let mut carrier = Carrier {
            connection,
            queue,
            waiting: HashMap::new(),
            events: sender,
        };
        tokio::spawn(async move {
            // Waiting commands find the reason, since their channels close when the task ends.
            if let Err(reason) = carrier.run().await {
                let _ = note.set(format!(
                    "lost the connection to QEMU's monitor at {address}: {reason}"
                ));
            }
        });
        let session = Self {
            version: greeting.version(),
            commands,
            events,
            broken,
        };
        session
            .execute("qmp_capabilities", Value::Null, deadline)
            .await?;
        Ok(session)
    }

    /// The version of QEMU.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Whether commands can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Sends a command (with null for no arguments) and waits for its answer.
    pub(super) async fn execute(
        &self,
        execute: &'static str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, Fault> {
        let (answer, answered) = oneshot::channel();
        let command = Command {
            execute,
            arguments,
            answer,
        };
        let late = format!("QEMU did not answer {execute}");
        let result = with_deadline(deadline, &late, async {
            self.commands.send(command).await.ok()?;
            answered.await.ok()
        });
        match result.await? {
            Some(Ok(value)) => Ok(value),
            Some(Err(Refusal { class, description })) => Err(Fault::Refused {
                command: execute,
                class,
                description,
            }),
            None => Err(self.broken()),
        }
    }

    /// Watches events from now on.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch {
            session: self,
            events: self.events.resubscribe(),
        }
    }

    fn broken(&self) -> Fault {
        let reason = self
            .broken
            .get()
            .map_or("QEMU's monitor is closed", String::as_str);
        Fault::Broken(reason.to_owned())
    }
}

/// The events of a session.
pub(super) struct Watch<'a> {
    session: &'a Session,
    events: broadcast::Receiver<Event>,
}

impl Watch<'_> {
    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> Result<Event, Fault> {
        self.events.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Closed => self.session.broken(),
            broadcast::error::RecvError::Lagged(n) => {
                Fault::Broken(format!("{n} events of QEMU came too fast"))
            }
        })
    }
}

/// The task that owns the connection.
struct Carrier {
    connection: Connection,
    queue: mpsc::Receiver<Command>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    events: broadcast::Sender<Event>,
}

impl Carrier {
    /// Transports commands, answers and events until no session can send commands. The error says why it ended early.
    async fn run(&mut self) -> Result<(), String> {
        for id in 1.. {
            let command = loop {
                tokio::select! {
                    line = next_line(&mut self.connection) => self.take(&line?)?,
                    command = self.queue.recv() => break command,
                }
            };
            match command {
                Some(command) => self.send(id, command).await?,
                None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        match Message::parse(line)? {
            Message::Answer(id, answer) => {
                let waiting = self.waiting.remove(&id);
                let waiting = waiting
                    .ok_or_else(|| format!("it answered command {id}, which was not sent"))?;
                // Nobody receives the answer if the command's deadline has passed.
                let _ = waiting.send(answer);
            }
            Message::Event(event) => {
                let _ = self.events.send(event);
            }
        }
        Ok(())
    }

    async fn send(&mut self, id: u64, command: Command) -> Result<(), String> {
        let line = protocol::command(id, command.execute, &command.arguments);
        self.waiting.insert(id, command.answer);
        let sent = tokio::time::timeout(WRITE, self.connection.send(line)).await;
        let sent = sent.map_err(|_| format!("it read nothing for {WRITE:?}"))?;
        sent.map_err(|error| error.to_string())
    }
}

async fn next_line(connection: &mut Connection) -> Result<String, String> {
    match connection.next().await {
        Some(Ok(line)) => Ok(line),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it closed the connection".to_owned()),
    }
}
