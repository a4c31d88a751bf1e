//! The screen on a terminal of memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::artifacts::write_run;
use crate::live::write_live;
use crate::record::{Ratio, samples};

fn shown(app: &App) -> String {
    let mut terminal = Terminal::new(TestBackend::new(110, 30)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn the_list_the_last_result_and_the_progress_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let run = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
    write_run(folder.path(), &run, "").unwrap();
    let mut app = App::new(folder.path().to_owned()).unwrap();
    let first = shown(&app);
    assert!(first.contains("ch01:training_goodput") && first.contains("not measured yet"), "{first}");
    while app.entries[app.selected].id != "ch13:kv_cache" {
        assert!(app.press(KeyCode::Down));
    }
    let measured = shown(&app);
    assert!(measured.contains("faster x2.00 [1.90, 2.10]") && measured.contains("no run under way"), "{measured}");
    let live = Live { run_id: "r2".into(), lab: "ch01:gemm".into(), done: 3, total: 12, pid: std::process::id() };
    write_live(folder.path(), &live).unwrap();
    app.follow();
    assert!(shown(&app).contains("ch01:gemm: 3 of 12"));
    assert!(app.to_text().contains("faster x2.00 [1.90, 2.10]"));
}

#[test]
fn keys_move_within_the_list_and_q_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut app = App::new(folder.path().to_owned()).unwrap();
    assert!(app.press(KeyCode::Up));
    assert_eq!(app.selected, 0);
    assert!(app.press(KeyCode::End) && app.press(KeyCode::Down));
    assert_eq!(app.selected, app.entries.len() - 1);
    assert!(!app.press(KeyCode::Char('q')));
}
