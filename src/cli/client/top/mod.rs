//! `opi-spdk top`: load of volumes, hosts, paths and reactors, every second.

mod screen;
mod table;
mod views;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::http::{Http, Scraper};
use super::metrics::Scrape;
use super::{Connect, Connection, Failure};
use table::Row;
use views::{HostIo, View};

/// Refresh interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// Timeout of a poll for keys, after which the thread checks whether it has to end.
const KEYS: Duration = Duration::from_millis(200);

/// `opi-spdk top`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: 1 to 4 or tab: volumes, hosts, paths, reactors; left and right: the column to sort by; r: \
                  the other way round; /: filter by a text, enter or escape ends that; up and down; q: end."
)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    http: Http,
}

/// State of the screen.
struct App {
    view: View,
    /// Per view: the column to sort by, and whether reversed.
    sort: [(usize, bool); 4],
    filter: String,
    /// The filter is being edited.
    is_typing: bool,
    /// Rows scrolled off the top.
    above: usize,
    rows: Vec<Row>,
    /// Sums over all volumes and reactors.
    totals: Totals,
    /// Since when the server has not answered, and why.
    away: Option<(Instant, String)>,
    address: String,
}

/// Load of the whole server.
#[derive(Debug, Default)]
struct Totals {
    volumes: usize,
    iops: f64,
    bytes: f64,
    /// Utilization of the busiest reactor.
    busy: f64,
}

/// The previous readings.
#[derive(Default)]
struct Before {
    scrape: Option<Scrape>,
    hosts: Option<(Instant, HostIo)>,
}

/// Runs the subcommand.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let here = |error: std::io::Error| Failure::Here(format!("terminal: {error}"));
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let what = "top draws on a terminal, and this is none: stats and hosts print the same";
        return Err(Failure::Usage(what.to_owned()));
    }
    let scraper = args.http.scraper(&args.connect)?;
    let connection = args.connect.connect().await?;
    let mut ended =
        [SignalKind::terminate(), SignalKind::hangup()].map(|kind| signal(kind).map_err(here));
    let [terminate, hangup] = &mut ended;
    let (Ok(terminate), Ok(hangup)) = (terminate, hangup) else {
        return Err(Failure::Here("signals cannot be caught".to_owned()));
    };
    let terminal = ratatui::try_init().map_err(here)?;
    let done = tokio::select! {
        done = show(terminal, connection, &scraper) => done,
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    };
    ratatui::restore();
    done.map_err(here)
}

async fn show(
    mut terminal: DefaultTerminal,
    connection: Connection,
    scraper: &Scraper,
) -> std::io::Result<()> {
    let (mut keys, _ended) = keys();
    let mut app = App::new(scraper.address());
    let mut before = Before::default();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A key cancels a refresh in flight, which is then started again.
    let mut is_due = false;
    loop {
        terminal.draw(|frame| screen::draw(&mut app, frame))?;
        tokio::select! {
            event = keys.recv() => match event {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    let view = app.view;
                    if !app.press(key) {
                        return Ok(());
                    }
                    if app.view != view {
                        // The rows of the new view are read immediately.
                        is_due = true;
                    }
                }
                Some(_) => {}
            },
            () = async {
                if !is_due {
                    ticks.tick().await;
                }
                is_due = true;
                app.read(&connection, scraper, &mut before).await;
                is_due = false;
            } => {}
        }
    }
}

/// Stops the thread that reads keys when dropped.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keys and resizes of the terminal. The channel closes when the terminal is gone.
fn keys() -> (mpsc::Receiver<Event>, Ended) {
    let (sender, receiver) = mpsc::channel(64);
    let ended = Arc::new(AtomicBool::new(false));
    let is_ended = Arc::clone(&ended);
    std::thread::spawn(move || {
        while !is_ended.load(Ordering::Relaxed) {
            let read = match event::poll(KEYS) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let Ok(event) = read else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    (receiver, Ended(ended))
}

impl App {
    fn new(address: &str) -> Self {
        Self {
            view: View::Volumes,
            // Default order: by load where the view has one, else by name.
            sort: [(1, false), (0, false), (1, false), (0, false)],
            filter: String::new(),
            is_typing: false,
            above: 0,
            rows: Vec::new(),
            totals: Totals::default(),
            away: None,
            address: address.to_owned(),
        }
    }

    fn sort(&mut self) -> &mut (usize, bool) {
        &mut self.sort[self.view as usize]
    }

    /// Handles a key; `false` means quit.
    fn press(&mut self, key: KeyEvent) -> bool {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return false;
        }
        if self.is_typing {
            match key.code {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => {
                    self.is_typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(letter) if !is_control => self.filter.push(letter),
                _ => {}
            }
            self.above = 0;
            return true;
        }
        let columns = self.view.columns().len();
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('1') => self.show(View::Volumes),
            KeyCode::Char('2') => self.show(View::Hosts),
            KeyCode::Char('3') => self.show(View::Paths),
            KeyCode::Char('4') => self.show(View::Reactors),
            KeyCode::Tab => {
                let next = (self.view as usize + 1) % View::ALL.len();
                self.show(View::ALL[next]);
            }
            KeyCode::Right => self.sort().0 = (self.sort().0 + 1) % columns,
            KeyCode::Left => self.sort().0 = (self.sort().0 + columns - 1) % columns,
            KeyCode::Char('r') => self.sort().1 = !self.sort().1,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Down | KeyCode::Char('j') => self.above = self.above.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.above = self.above.saturating_sub(1),
            KeyCode::Home => self.above = 0,
            _ => {}
        }
        true
    }

    fn show(&mut self, view: View) {
        if self.view != view {
            self.view = view;
            self.rows.clear();
            self.above = 0;
        }
    }

    /// Refreshes the rows. The previous rows remain if the server does not answer.
    async fn read(&mut self, connection: &Connection, scraper: &Scraper, before: &mut Before) {
        match self.rows_of(connection, scraper, before).await {
            Ok(rows) => {
                self.away = None;
                if let Some(rows) = rows {
                    self.rows = rows;
                }
            }
            Err(reason) => {
                let since = self
                    .away
                    .take()
                    .map_or_else(Instant::now, |(since, _)| since);
                self.away = Some((since, reason));
            }
        }
    }

    /// The rows of the view; `None` until there are two readings to compare.
    async fn rows_of(
        &mut self,
        connection: &Connection,
        scraper: &Scraper,
        before: &mut Before,
    ) -> Result<Option<Vec<Row>>, String> {
        let told = |failure: Failure| failure.to_string();
        let text = scraper.metrics().await?;
        let now = Scrape::parse(&text, Instant::now());
        let rows = match self.view {
            View::Hosts => {
                let read = views::connected(connection, before.hosts.as_ref()).await;
                let (rows, counters) = read.map_err(told)?;
                before.hosts = Some(counters);
                Some(rows)
            }
            View::Paths => match before.scrape.as_ref() {
                Some(old) => {
                    let names = views::path_names(connection).await.map_err(told)?;
                    Some(views::paths(old, &now, &names))
                }
                None => None,
            },
            View::Volumes => before.scrape.as_ref().map(|old| views::volumes(old, &now)),
            View::Reactors => match before.scrape.as_ref() {
                Some(old) => {
                    let queues = views::queues(connection).await.map_err(told)?;
                    Some(views::reactors(old, &now, &queues))
                }
                None => None,
            },
        };
        if let Some(old) = &before.scrape {
            self.totals = Totals::between(old, &now);
        }
        before.scrape = Some(now);
        Ok(rows)
    }
}

impl Totals {
    fn between(before: &Scrape, now: &Scrape) -> Self {
        let sum = |what: &str| -> f64 {
            let rates = ["read", "write", "unmap"].map(|kind| {
                let metric = format!("opi_spdk_volume_{kind}_{what}_total");
                let rates = now.rates(before, &metric, "volume");
                rates.values().sum::<f64>()
            });
            rates.iter().sum()
        };
        let busy = views::reactors(before, now, &Default::default());
        let shares = busy.iter().filter_map(|row| match row.get(1) {
            Some(table::Value::Share(share)) => Some(*share),
            _ => None,
        });
        Self {
            volumes: now.of("opi_spdk_volume_size_bytes").len(),
            iops: sum("operations"),
            bytes: sum("bytes"),
            busy: shares.fold(0.0, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(app: &mut App, keys: &str) -> bool {
        keys.chars().all(|letter| {
            let code = match letter {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '>' => KeyCode::Right,
                '<' => KeyCode::Left,
                letter => KeyCode::Char(letter),
            };
            app.press(KeyEvent::new(code, KeyModifiers::NONE))
        })
    }

    #[test]
    fn keys_choose_what_is_shown_and_how() {
        let mut app = App::new("");
        assert!(press(&mut app, ">r/qa\n"));
        assert_eq!((app.sort[0], app.filter.as_str()), ((2, true), "qa"));
        assert!(press(&mut app, "<<<"));
        assert_eq!(app.sort[0].0, View::Volumes.columns().len() - 1);
        assert!(press(&mut app, "4\t"));
        assert_eq!(app.view, View::Volumes, "they go round");
        assert!(!press(&mut app, "q"), "the end");
    }
}
