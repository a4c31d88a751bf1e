//! How the screen looks: the list of labs, the selected one in full, progress below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, List, ListState, Paragraph, Wrap};

use super::App;

/// Draws one frame.
pub fn draw(frame: &mut Frame<'_>, app: &App) {
    let rows = Layout::vertical([Constraint::Min(5), Constraint::Length(3), Constraint::Length(1)]);
    let [top, progress, help] = rows.areas(frame.area());
    let [list, detail] = Layout::horizontal([Constraint::Length(34), Constraint::Min(20)]).areas(top);

    let mark = |entry: &super::Entry| if entry.last.is_empty() { "·" } else { "✓" };
    let items = app.entries.iter().map(|entry| format!("{} {}", mark(entry), entry.id));
    let highlight = Style::new().add_modifier(Modifier::REVERSED);
    let labs = List::new(items).block(Block::bordered().title("labs")).highlight_style(highlight);
    frame.render_stateful_widget(labs, list, &mut ListState::default().with_selected(Some(app.selected)));

    let selected = app.entries.get(app.selected);
    let mut lines = Vec::new();
    if let Some(entry) = selected {
        lines.extend([Line::from(entry.summary.as_str()), Line::default()]);
        if entry.last.is_empty() {
            lines.push(Line::from("not measured yet: Enter runs it"));
        } else {
            lines.push(Line::from(format!("latest run, {}:", entry.date)));
            lines.extend(entry.last.iter().map(|line| Line::from(format!("  {line}"))));
        }
    }
    let title = selected.map_or("", |entry| entry.id.as_str());
    let text = Paragraph::new(lines).wrap(Wrap { trim: false }).block(Block::bordered().title(title));
    frame.render_widget(text, detail);

    let part = app.live.as_ref().map_or(0.0, |live| live.done as f64 / live.total.max(1) as f64);
    let gauge = Gauge::default().block(Block::bordered().title("run")).ratio(part.clamp(0.0, 1.0)).label(app.status());
    frame.render_widget(gauge, progress);
    frame.render_widget("↑ ↓ choose   Enter run   q quit", help);
}
