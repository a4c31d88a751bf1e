//! An answer in one piece.

use super::Generation;
use crate::error::ApiError;
use crate::openai::{AnswerFormat, ChoicePiece};

/// Waits for the end of every choice and writes the answer. Dropping the future aborts them.
///
/// Errors: the engine is gone, or something of ours broke.
pub async fn collect(mut generation: Generation, mut format: AnswerFormat) -> Result<Vec<u8>, ApiError> {
    let mut pieces: Vec<ChoicePiece> =
        (0..generation.num_choices()).map(|choice| ChoicePiece { choice, ..ChoicePiece::default() }).collect();
    while !generation.is_done() {
        let event = generation.events().recv().await.ok_or(ApiError::EngineFailed)?;
        if let Some(piece) = generation.absorb(event)? {
            pieces[piece.choice].append(piece);
        }
    }
    format.whole(&pieces, generation.usage()).map_err(|_| ApiError::Internal)
}
