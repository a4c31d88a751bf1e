//! Which query rows stand side by side in registers.

use std::ops::Range;

use super::tile;
use crate::simd::Simd;

/// How an item's rows are cut: whole tokens if they fit a panel, else equal parts of one token's heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    /// Rows of a panel; the last of an item may hold fewer tokens, the last of a token fewer heads.
    rows: usize,
    /// Rows of one token in a panel.
    pub rows_per_token: usize,
    /// Panels that one token's heads are cut into, or 1.
    per_token: usize,
    tokens: usize,
    group: usize,
}

impl Panels {
    #[inline(always)]
    pub(super) fn new<S: Simd>(tokens: usize, group: usize) -> Self {
        let most = tile::panel_rows::<S>();
        if group <= most {
            return Self { rows: most / group * group, rows_per_token: group, per_token: 1, tokens, group };
        }
        let rows = group.div_ceil(group.div_ceil(most));
        Self { rows, rows_per_token: rows, per_token: group.div_ceil(rows), tokens, group }
    }

    #[inline(always)]
    pub(super) fn len(self) -> usize {
        if self.per_token > 1 { self.tokens * self.per_token } else { (self.tokens * self.group).div_ceil(self.rows) }
    }

    /// Rows of a panel, counted from the item's first.
    #[inline(always)]
    pub(super) fn rows(self, panel: usize) -> Range<usize> {
        if self.per_token > 1 {
            let (token, part) = (panel / self.per_token, panel % self.per_token);
            let start = token * self.group + part * self.rows;
            return start..(start + self.rows).min((token + 1) * self.group);
        }
        panel * self.rows..((panel + 1) * self.rows).min(self.tokens * self.group)
    }
}
