//! What the stored runs say together: pure functions from records to findings. Knows no clock and no terminal.

pub mod cost;
pub mod export;
pub mod findings;
pub mod history;
pub mod leaderboard;
pub mod pareto;
pub mod power;
pub mod report;
pub mod rows;
pub mod scaling;
pub mod stacking;
pub mod whatif;

pub use rows::{Group, Rate, Row, groups};
