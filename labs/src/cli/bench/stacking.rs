//! `aisp bench stacking`: which switches combine, which fight, which are wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::run::Sampling;
use super::{Folders, parsed_context};
use crate::cli::output::{print, print_line};
use crate::harness::Harness;
use crate::live::LiveFile;
use crate::progress::Bars;
use crate::record::{RunRecord, Verdict};
use crate::stacking::{StackingLab, matrix};
use crate::{LabError, artifacts, machine, report, stacking_plot};

/// Arguments of `aisp bench stacking`.
#[derive(Debug, Args)]
pub struct Stacking {
    /// Built-in name, folder, .gguf file, hub id or dummy:SHAPE
    #[arg(long, default_value = "")]
    model: String,
    /// Feeds every draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    folders: Folders,
    /// Also write the matrix here; the README's table reads expectations/stacking.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Stacking {
    /// Measures the matrix and writes it as JSON, Markdown and SVG; fails when an arm is wrong.
    ///
    /// Errors: a model that cannot run, files that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let context = parsed_context(&self.model, self.seed)?;
        let sampling = json!({ "iterations": self.sampling.iterations, "warmup": self.sampling.warmup });
        let config =
            BTreeMap::from([("model".to_owned(), json!(context.model.to_string())), ("sampling".to_owned(), sampling)]);
        let manifest = machine::manifest(config, self.seed);
        let live = LiveFile::new(&self.folders.artifacts, &manifest.run_id, Bars::default());
        let harness =
            Harness { config: self.sampling.harness(&self.folders, &manifest.device)?, context, progress: &live };
        let record = harness.run(&StackingLab)?;
        let Some(record) = record else {
            print_line("stopped before three replicates were through: nothing is written")?;
            return Ok(ExitCode::FAILURE);
        };
        let matrix = matrix(&record, self.seed);
        let all_right = record.variants.iter().all(|variant| variant.verdict != Verdict::Wrong);
        let run = RunRecord { manifest, labs: vec![record], partial: harness.context.stop.is_requested() };
        let page = format!("{}\n## Matrix\n\n{}\n![](stacking.svg)\n", report::markdown(&run), matrix.markdown());
        let dir = artifacts::write_run(&self.folders.artifacts, &run, &page)?;
        artifacts::write_json(&dir.join("stacking.json"), &matrix)?;
        if let Some(path) = &self.json {
            artifacts::write_json(path, &matrix)?;
        }
        for (name, text) in [("stacking.md", matrix.markdown()), ("stacking.svg", stacking_plot::svg(&matrix))] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(LabError::io(&path))?;
        }
        print(&matrix.markdown())?;
        print_line(&format!("written to {}", dir.display()))?;
        Ok(if all_right && !run.partial { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
