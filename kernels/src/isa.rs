//! Instruction set levels, chosen at run time so that one binary is fast on every machine of an architecture.

use std::fmt;

use crate::KernelError;

/// Name of the environment variable that lowers the level.
pub const ISA_VARIABLE: &str = "AISP_ISA";

/// An instruction set level with kernels of its own, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust without intrinsics; runs everywhere.
    Portable,
    /// arm64: the portable kernels, which the compiler vectorizes with NEON, fused multiply-add included.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VNNI and BF16 (Ice Lake's successors, Zen 4 and later).
    Avx512,
}

impl Isa {
    const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// The best level of this machine.
    pub fn detect() -> Self {
        Self::available().into_iter().max().unwrap_or(Self::Portable)
    }

    /// Every level that this machine can run, in rising order.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The level called `name`, or the best one without a name.
    ///
    /// Errors: a name that is unknown, or a level that this machine lacks.
    pub fn select(name: Option<&str>) -> Result<Self, KernelError> {
        let Some(name) = name else { return Ok(Self::detect()) };
        let choices = || Self::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
        let Some(isa) = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim())) else {
            return Err(KernelError::UnknownIsa { name: name.to_owned(), choices: choices() });
        };
        if !isa.is_available() {
            return Err(KernelError::UnavailableIsa { name: isa.name(), choices: choices() });
        }
        Ok(isa)
    }

    /// [`Isa::select`] with the value of [`ISA_VARIABLE`].
    ///
    /// Errors: as [`Isa::select`].
    pub fn from_env() -> Result<Self, KernelError> {
        let value = std::env::var_os(ISA_VARIABLE).map(|value| value.to_string_lossy().into_owned());
        Self::select(value.as_deref())
    }

    /// Lower-case name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_the_last_of_those_available() {
        assert_eq!(Isa::available().last(), Some(&Isa::detect()));
        assert_eq!(Isa::available()[0], Isa::Portable);
        assert_eq!(Isa::select(None).unwrap(), Isa::detect());
    }

    #[test]
    fn a_name_lowers_the_level() {
        assert_eq!(Isa::select(Some("portable")).unwrap(), Isa::Portable);
        assert_eq!(Isa::select(Some(Isa::detect().name())).unwrap(), Isa::detect());
    }

    #[test]
    fn a_wrong_name_lists_the_choices() {
        let error = Isa::select(Some("sse9")).unwrap_err().to_string();
        assert!(error.starts_with("unknown instruction set `sse9`: choose one of portable"), "{error}");
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        let error = Isa::select(Some(foreign)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("this machine cannot run `{foreign}`")), "{error}");
    }
}
