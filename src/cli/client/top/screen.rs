//! Draws the screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Drawn, Table, Wrap};

use super::super::failure::plain;
use super::App;
use super::table::{Value, arranged, fitting};
use super::views::View;

/// Minimum width and height of the terminal.
const MIN_SIZE: (u16, u16) = (40, 6);

/// Draws the whole screen.
pub(super) fn draw(app: &mut App, frame: &mut Frame) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        let text = format!(
            "{}x{} is too small: {}x{} or more, please; q ends",
            area.width, area.height, MIN_SIZE.0, MIN_SIZE.1
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let [head, tabs, rows, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title(app)), head);
    frame.render_widget(Paragraph::new(views(app)), tabs);
    table(app, frame, rows);
    frame.render_widget(Paragraph::new(help(app)), foot);
}

fn title(app: &App) -> Line<'static> {
    if let Some((since, reason)) = &app.away {
        let text = format!(
            "away for {} s: {}",
            since.elapsed().as_secs(),
            plain(reason)
        );
        let style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        return Line::styled(text, style);
    }
    let totals = &app.totals;
    let text = format!(
        "opi-spdk {}  {} volumes  {} IOPS  {}/s  busiest reactor {}",
        plain(&app.address),
        totals.volumes,
        Value::Count(totals.iops.round()).shown(),
        Value::Bytes(totals.bytes.round()).shown(),
        Value::Share(totals.busy).shown(),
    );
    Line::raw(text)
}

fn views(app: &App) -> Line<'static> {
    let mut spans = Vec::new();
    for (at, view) in View::ALL.into_iter().enumerate() {
        let style = match view == app.view {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new(),
        };
        spans.push(Span::styled(format!(" {} {} ", at + 1, view.name()), style));
    }
    Line::from(spans)
}

fn help(app: &App) -> Line<'static> {
    if app.is_typing {
        return Line::raw(format!("filter: {}_", plain(&app.filter)));
    }
    let filter = match app.filter.as_str() {
        "" => "/ filter".to_owned(),
        filter => format!("/ filter: {}", plain(filter)),
    };
    Line::raw(format!("q end  tab view  <- -> sort  r reverse  {filter}"))
}

fn table(app: &mut App, frame: &mut Frame, area: Rect) {
    let columns = app.view.columns();
    let (by, reverse) = *app.sort();
    let rows = arranged(&app.rows, &app.filter, by, reverse);
    let shown = usize::from(area.height.saturating_sub(1)).max(1);
    app.above = app.above.min(rows.len().saturating_sub(shown));
    let fitting = fitting(columns, area.width);
    let aligned = |value: &Value, width: u16| match value {
        Value::Text(text) => text.clone(),
        other => format!("{:>width$}", other.shown(), width = usize::from(width)),
    };
    let header = fitting.iter().filter_map(|&(at, width)| {
        let column = columns.get(at)?;
        let style = match at == by {
            true => Style::new().add_modifier(Modifier::REVERSED),
            false => Style::new().add_modifier(Modifier::BOLD),
        };
        // Headers of numbers are right-aligned like the numbers.
        let is_number = app.rows.first().and_then(|row| row.get(at));
        let is_number = is_number.is_some_and(|value| !matches!(value, Value::Text(_)));
        let text = match is_number {
            true => format!("{:>width$}", column.header, width = usize::from(width)),
            false => column.header.to_owned(),
        };
        Some(Cell::new(text).style(style))
    });
    let header = Drawn::new(header.collect::<Vec<_>>());
    let drawn = rows.iter().skip(app.above).take(shown).map(|row| {
        let cells = fitting.iter().map(|&(at, width)| {
            let value = row.get(at).unwrap_or(&Value::Absent);
            Cell::new(aligned(value, width))
        });
        Drawn::new(cells.collect::<Vec<_>>())
    });
    let widths: Vec<Constraint> = fitting
        .iter()
        .map(|&(_, width)| Constraint::Length(width))
        .collect();
    let style = match app.away {
        Some(_) => Style::new().add_modifier(Modifier::DIM),
        None => Style::new(),
    };
    let table = Table::new(drawn.collect::<Vec<_>>(), widths)
        .header(header)
        .style(style);
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::Instant;

    fn screen(app: &mut App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(app, frame)).unwrap();
        terminal.backend().to_string()
    }

    fn app() -> App {
        let mut app = App::new("127.0.0.1:8082");
        let row = |name: &str, iops| {
            let numbers = [
                Value::Bytes(iops * 4096.0),
                Value::Bytes(0.0),
                Value::Seconds(2e-5),
            ];
            let mut row = vec![Value::text(name), Value::Count(iops)];
            row.extend(numbers);
            row.extend([Value::Seconds(1e-4), Value::Count(0.0)]);
            row
        };
        app.rows = vec![row("volumes/a", 5.0), row("volumes/b", 40_000.0)];
        app
    }

    #[test]
    fn a_terminal_of_80_by_24_has_all_columns_and_the_busiest_first() {
        let text = screen(&mut app(), 80, 24);
        for header in [
            "VOLUME", "IOPS", "READ/s", "WRITE/s", "P50", "P99", "ERRORS",
        ] {
            assert!(text.contains(header), "{header}:\n{text}");
        }
        let at = |name: &str| text.find(name).expect("a row");
        assert!(at("volumes/b") < at("volumes/a"), "{text}");
        assert!(text.contains("40k"), "{text}");
    }

    #[test]
    fn a_terminal_of_20_columns_is_told_and_any_size_is_drawn() {
        let text = screen(&mut app(), 20, 24);
        assert!(text.contains("20x24 is too small"), "{text}");
        for (width, height) in [(1, 1), (40, 6), (41, 7), (60, 10), (300, 100)] {
            screen(&mut app(), width, height);
        }
    }

    #[test]
    fn a_server_that_is_away_is_shown_with_the_reason_over_what_there_was() {
        let mut app = app();
        app.away = Some((Instant::now(), "no\u{1b} answer".to_owned()));
        let text = screen(&mut app, 80, 24);
        assert!(text.contains("away for 0 s: no  answer"), "{text}");
        assert!(text.contains("volumes/b"), "{text}");
    }
}
