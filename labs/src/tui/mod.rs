//! The labs in a terminal: what there is, what came out last, and how far the run under way is.

mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};

pub use view::draw;

use crate::child::Supervised;
use crate::lab::LabInfo;
use crate::live::{Live, read_live};
use crate::record::RunRecord;
use crate::stop::Stop;
use crate::table::Table;
use crate::{LabError, artifacts, labs};

/// How long a key is waited for before the screen is drawn anew.
const FRAME: Duration = Duration::from_millis(250);

/// Frames between two looks at the stored runs.
const FRAMES_A_LOOK: u32 = 8;

/// One lab as the list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// What it compares.
    pub summary: String,
    /// A line for each optimized arm of its latest run; empty without one.
    pub last: Vec<String>,
    /// When that was.
    pub date: String,
}

/// What the screen shows.
#[derive(Debug, Default)]
pub struct App {
    artifacts: PathBuf,
    /// Every lab.
    pub entries: Vec<Entry>,
    /// The one under the cursor.
    pub selected: usize,
    /// The run under way, by this screen or another process.
    pub live: Option<Live>,
    /// The last thing that happened.
    pub message: String,
    running: Option<Supervised>,
}

impl App {
    /// Reads the registry and the stored runs.
    ///
    /// Errors: a folder that cannot be listed.
    pub fn new(artifacts: PathBuf) -> Result<Self, LabError> {
        let mut app = Self { artifacts, ..Self::default() };
        app.refresh()?;
        Ok(app)
    }

    /// Looks at the stored runs anew.
    ///
    /// Errors: as [`App::new`].
    pub fn refresh(&mut self) -> Result<(), LabError> {
        let (runs, _) = artifacts::read_all(&self.artifacts)?;
        self.entries = entries(labs::all().iter().map(|lab| lab.info()), &runs);
        self.follow();
        Ok(())
    }

    /// Looks at the run under way.
    pub fn follow(&mut self) {
        self.live = read_live(&self.artifacts);
        if self.running.as_ref().is_some_and(|run| !run.is_alive()) {
            self.running = None;
            self.message = "the run is over".into();
        }
    }

    /// Takes a key; false ends the screen.
    pub fn press(&mut self, key: KeyCode) -> bool {
        let last = self.entries.len().saturating_sub(1);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            KeyCode::Enter | KeyCode::Char('r') => self.run_selected(),
            _ => {}
        }
        true
    }

    fn run_selected(&mut self) {
        let Some(entry) = self.entries.get(self.selected) else { return };
        if self.running.is_some() {
            self.message = "a run is under way: wait for it, or q to end it".into();
            return;
        }
        let own = std::env::current_exe().unwrap_or_else(|_| "aisp".into());
        let mut command = Command::new(own);
        command.args(["bench", "run", "--targets", &entry.id, "--artifacts"]).arg(&self.artifacts);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match Supervised::spawn(&mut command, |_| ()) {
            Ok((running, ())) => {
                self.message = format!("running {}", entry.id);
                self.running = Some(running);
            }
            Err(error) => self.message = format!("{} cannot be run: {error}", entry.id),
        }
    }

    /// The list as text.
    pub fn to_text(&self) -> String {
        let mut table = Table::new(&["lab", "last result", "date"]);
        for entry in &self.entries {
            let last = if entry.last.is_empty() { "not measured".to_owned() } else { entry.last.join("; ") };
            table.row([entry.id.clone(), last, entry.date.clone()]);
        }
        format!("{table}\n{}\n", self.status())
    }

    /// One line about the run under way.
    pub fn status(&self) -> String {
        match &self.live {
            Some(live) => format!("{}: {} of {}", live.lab, live.done, live.total),
            None if self.message.is_empty() => "no run under way".into(),
            None => self.message.clone(),
        }
    }
}

/// A row a lab with its newest result; `runs` are newest first.
fn entries(infos: impl Iterator<Item = LabInfo>, runs: &[RunRecord]) -> Vec<Entry> {
    let mut newest = BTreeMap::new();
    for run in runs {
        for lab in &run.labs {
            newest.entry(lab.id.as_str()).or_insert((run, lab));
        }
    }
    let entry = |info: LabInfo| {
        let found = newest.get(info.id.as_str());
        let last = found.map_or_else(Vec::new, |(_, lab)| {
            lab.variants.iter().map(|v| format!("{} {}", v.arm.name, v.verdict_text)).collect()
        });
        let date = found.map_or_else(String::new, |(run, _)| run.manifest.date.clone());
        Entry { id: info.id, summary: info.summary, last, date }
    };
    infos.map(entry).collect()
}

/// Shows the screen until `q`. A run that was started from it ends with it.
///
/// Errors: no terminal, a folder that cannot be listed.
pub fn run(artifacts: PathBuf, stop: &Stop) -> Result<(), LabError> {
    let mut app = App::new(artifacts)?;
    let mut terminal = ratatui::try_init().map_err(terminal_error)?;
    let result = screen(&mut terminal, &mut app, stop);
    ratatui::restore();
    result
}

fn screen(terminal: &mut DefaultTerminal, app: &mut App, stop: &Stop) -> Result<(), LabError> {
    for frame in 1u32.. {
        terminal.draw(|frame| draw(frame, app)).map_err(terminal_error)?;
        if event::poll(FRAME).map_err(terminal_error)?
            && let Event::Key(key) = event::read().map_err(terminal_error)?
        {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(event::KeyModifiers::CONTROL);
            if key.kind == KeyEventKind::Press && (interrupt || !app.press(key.code)) {
                break;
            }
        }
        if stop.is_requested() {
            break;
        }
        if frame % FRAMES_A_LOOK == 0 { app.refresh()? } else { app.follow() }
    }
    Ok(())
}

fn terminal_error(error: std::io::Error) -> LabError {
    LabError::System { what: "the terminal (--simple needs none)", message: error.to_string() }
}

#[cfg(test)]
mod tests;
