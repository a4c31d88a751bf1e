//! `aisp bench analyze`: leaderboards, Pareto frontier, trade-offs and advice.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::analysis::Source;
use crate::LabError;
use crate::analysis::findings::{recommendations, trade_offs};
use crate::analysis::leaderboard::leaderboards;
use crate::analysis::pareto::frontiers;
use crate::analysis::report::pareto_table;
use crate::table::Table;

/// Arguments of `aisp bench analyze`.
#[derive(Debug, Args)]
pub struct Analyze {
    #[command(flatten)]
    source: Source,
}

impl Analyze {
    /// Prints the findings.
    ///
    /// Errors: no runs.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let groups = self.source.groups()?;
        let boards = leaderboards(&groups);
        let advice = recommendations(&groups);
        let answer = json!({
            "leaderboards": boards,
            "pareto": frontiers(&groups),
            "tradeoffs": trade_offs(&groups),
            "recommendations": advice,
        });
        self.source.print(&answer, || {
            let mut best = Table::new(&["lab", "device", "best arm", "verdict"]);
            for board in &boards {
                let first =
                    board.ranked.first().map_or(["-", "-"], |row| [row.arm.as_str(), row.verdict_text.as_str()]);
                best.row([board.lab, board.device, first[0], first[1]].map(str::to_owned));
            }
            let advice: String =
                advice.iter().map(|it| format!("{:?}: {}: {}\n", it.urgency, it.about, it.text)).collect();
            format!(
                "Best of each workload\n\n{best}\nPareto frontiers\n\n{}\nAdvice\n\n{advice}",
                pareto_table(&groups)
            )
        })
    }
}
