//! stub
use super::*;
/// stub
#[derive(Debug, Clone)]
pub struct ChatTemplate;
impl ChatTemplate {
    /// stub
    pub fn for_tokenizer(_s: &str, _t: &Tokenizer) -> Result<Self, TextError> {
        Ok(Self)
    }
}
