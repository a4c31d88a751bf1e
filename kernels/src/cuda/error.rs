//! What can go wrong between us and a card, each with its cure.

/// A failure on the CUDA side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No driver, or none that answers.
    #[error("no NVIDIA driver answers ({message}): install one, or run with --device cpu")]
    NoDriver {
        /// What the run-time says.
        message: String,
    },
    /// A driver that cannot run this build.
    #[error(
        "the NVIDIA driver knows CUDA {driver}, this build needs {needed}: \
         update the driver, or run with --device cpu"
    )]
    OldDriver {
        /// Its version.
        driver: String,
        /// Ours.
        needed: String,
    },
    /// A device that is not there.
    #[error("there is no cuda:{index}, this machine has {count}: choose a smaller number, or run with --device cpu")]
    NoDevice {
        /// Asked for.
        index: usize,
        /// Cards there are.
        count: usize,
    },
    /// A run-time library is not found.
    #[error("{library} is not found ({message}): eval \"$(scripts/cuda-libs.sh)\" finds or fetches it")]
    MissingLibrary {
        /// Its file name.
        library: String,
        /// The loader's words.
        message: String,
    },
    /// The card is full.
    #[error("the card has {free_bytes} bytes free, {what} needs {needed_bytes}: lower {flag}")]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
        /// What makes it smaller.
        flag: &'static str,
    },
    /// A buffer smaller than its shape.
    #[error("{op}: {what} has room for {actual} values, {needed} are needed")]
    TooSmall {
        /// Which op.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// Values there are.
        actual: usize,
        /// Values needed.
        needed: usize,
    },
    /// A type that cuBLASLt does not multiply on this card.
    #[error("cuBLASLt does not multiply {what} here, a Hopper GPU and cuBLASLt 12.9 or newer do: leave {switch} out")]
    NotMultiplied {
        /// The type.
        what: &'static str,
        /// The switch that asks for it.
        switch: &'static str,
    },
    /// An op failed. The engine is dead.
    #[error("{op} failed on the card: {message} (CUDA error {code})")]
    Failed {
        /// Which op.
        op: &'static str,
        /// `cudaError_t`.
        code: i32,
        /// Its text.
        message: String,
    },
}

impl CudaError {
    /// Whether the card was full.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. } | Self::Failed { code: 2, .. })
    }

    /// Whether every later call in this process fails too: the context is broken, only a new process helps.
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Failed { code: 214 | 220 | 226 | 700 | 702 | 710 | 714..=720 | 999, .. })
    }
}

impl From<CudaError> for candle_core::Error {
    fn from(error: CudaError) -> Self {
        Self::wrap(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_line_and_names_a_cure() {
        let text = String::from("x");
        for (error, cure) in [
            (CudaError::NoDriver { message: text.clone() }, "--device cpu"),
            (CudaError::OldDriver { driver: text.clone(), needed: text.clone() }, "update the driver"),
            (CudaError::NoDevice { index: 3, count: 1 }, "smaller number"),
            (CudaError::MissingLibrary { library: text.clone(), message: text.clone() }, "cuda-libs.sh"),
            (
                CudaError::OutOfMemory { what: "the KV cache", needed_bytes: 2, free_bytes: 1, flag: "--max-num-seqs" },
                "lower --max-num-seqs",
            ),
            (CudaError::NotMultiplied { what: "fp8", switch: "activations-fp8" }, "leave activations-fp8 out"),
        ] {
            let message = error.to_string();
            assert!(message.contains(cure) && message.lines().count() == 1, "{message}");
        }
    }

    #[test]
    fn an_illegal_address_is_sticky_and_a_bad_argument_is_not() {
        let failed = |code| CudaError::Failed { op: "x", code, message: String::new() };
        assert!(failed(700).is_sticky() && failed(719).is_sticky());
        assert!(!failed(1).is_sticky() && !failed(2).is_sticky());
    }
}
