//! The value of `--optimizations`: a set of switches, checked against the registry.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::Optimization;
use crate::device::DeviceKind;
use crate::plan::Plan;

/// A validated set of optimizations.
///
/// ```
/// use aisp_engine::{Optimization, Selection};
///
/// let selection: Selection = "all,-fused-ops".parse()?;
/// assert!(selection.contains(Optimization::ContinuousBatching));
/// assert!(!selection.contains(Optimization::FusedOps));
/// # Ok::<(), aisp_engine::SelectionError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    set: BTreeSet<Optimization>,
    device: DeviceKind,
}

/// Why a set makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A word that is not in the registry.
    #[error("unknown optimization `{name}`; choose none, exact, all, or names out of: {}", choices())]
    Unknown {
        /// The word.
        name: String,
    },
    /// Nothing was said.
    #[error("no optimization named; choose none, exact, all, or names out of: {}", choices())]
    Empty,
    /// `-name` with nothing to take it from.
    #[error("`-{name}` takes nothing away; write `all,-{name}` or `exact,-{name}`")]
    NothingToRemove {
        /// The name.
        name: String,
    },
    /// Two that exclude one another.
    #[error("{first} and {second} exclude one another; add `-{second}`")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// One that needs another.
    #[error("{name} needs {requirement}; add `{requirement}` or leave {name} out")]
    Unmet {
        /// Which.
        name: &'static str,
        /// What it needs.
        requirement: &'static str,
    },
    /// One that does not apply where the model runs.
    #[error("{name} does not apply on {device}; leave it out, or choose another --device")]
    NotOnDevice {
        /// Which.
        name: &'static str,
        /// Where the model runs.
        device: DeviceKind,
    },
}

fn choices() -> String {
    Optimization::ALL.map(Optimization::name).join(", ")
}

impl Selection {
    /// The plain baseline of everything.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every optimization whose outputs equal the baseline's, with all that it needs, on the CPU.
    pub fn exact() -> Self {
        Self::exact_on(DeviceKind::Cpu)
    }

    /// The same on a device.
    pub fn exact_on(device: DeviceKind) -> Self {
        let exact = |o: &Optimization| o.spec().exactness.is_lossless();
        let all_exact = |o: &Optimization| Self::closed_on(device, [*o]).iter().all(|o| exact(&o));
        Self { set: applying(device).filter(all_exact).collect(), device }
    }

    /// Every optimization that applies on the CPU; of those that exclude one another, the preferred one.
    pub fn all() -> Self {
        Self::all_on(DeviceKind::Cpu)
    }

    /// The same on a device.
    pub fn all_on(device: DeviceKind) -> Self {
        Self { set: applying(device).filter(|o| o.spec().in_all).collect(), device }
    }

    /// These and all that they need on the CPU. Conflicts are not looked for.
    pub fn closed(optimizations: impl IntoIterator<Item = Optimization>) -> Self {
        Self::closed_on(DeviceKind::Cpu, optimizations)
    }

    /// The same on a device.
    pub fn closed_on(device: DeviceKind, optimizations: impl IntoIterator<Item = Optimization>) -> Self {
        let mut set = BTreeSet::new();
        let mut open: Vec<Optimization> = optimizations.into_iter().collect();
        while let Some(optimization) = open.pop() {
            if set.insert(optimization) {
                open.extend(optimization.requires_on(device));
            }
        }
        Self { set, device }
    }

    /// The set without this one and without what needs it.
    pub fn without(&self, optimization: Optimization) -> Self {
        let needs = |o: &Optimization| Self::closed_on(self.device, [*o]).contains(optimization);
        Self { set: self.iter().filter(|o| !needs(o)).collect(), device: self.device }
    }

    /// Checks a set against the registry, for the CPU.
    ///
    /// Errors: a conflict, an unmet requirement, one that does not apply.
    pub fn of(optimizations: impl IntoIterator<Item = Optimization>) -> Result<Self, SelectionError> {
        Self::of_on(DeviceKind::Cpu, optimizations)
    }

    /// The same for a device.
    ///
    /// Errors: as [`Selection::of`].
    pub fn of_on(
        device: DeviceKind,
        optimizations: impl IntoIterator<Item = Optimization>,
    ) -> Result<Self, SelectionError> {
        let set: BTreeSet<_> = optimizations.into_iter().collect();
        if let Some(foreign) = set.iter().map(|o| o.spec()).find(|spec| !spec.devices.include(device)) {
            return Err(SelectionError::NotOnDevice { name: foreign.name, device });
        }
        for (optimization, spec) in set.iter().map(|o| (o, o.spec())) {
            if let Some(second) = spec.conflicts.iter().find(|o| set.contains(o)) {
                return Err(SelectionError::Conflict { first: spec.name, second: second.name() });
            }
            if let Some(missing) = optimization.requires_on(device).iter().find(|o| !set.contains(o)) {
                return Err(SelectionError::Unmet { name: spec.name, requirement: missing.name() });
            }
        }
        Ok(Self { set, device })
    }

    /// The same switches, checked for a device.
    ///
    /// Errors: as [`Selection::of`].
    pub fn on(&self, device: DeviceKind) -> Result<Self, SelectionError> {
        Self::of_on(device, self.iter())
    }

    /// Whether it is in the set.
    pub fn contains(&self, optimization: Optimization) -> bool {
        self.set.contains(&optimization)
    }

    /// The set, in application order.
    pub fn iter(&self) -> impl Iterator<Item = Optimization> + '_ {
        self.set.iter().copied()
    }

    /// The plan that the set comes to.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::BASELINE;
        for optimization in self.iter() {
            optimization.apply(&mut plan);
        }
        plan
    }
}

fn applying(device: DeviceKind) -> impl Iterator<Item = Optimization> {
    Optimization::ALL.into_iter().filter(move |o| o.spec().devices.include(device))
}

impl FromStr for Selection {
    type Err = SelectionError;

    /// For the CPU.
    fn from_str(text: &str) -> Result<Self, SelectionError> {
        Self::parse_on(text, DeviceKind::Cpu)
    }
}

impl Selection {
    /// Reads the value of `--optimizations` for a device.
    ///
    /// Errors: an unknown name, and as [`Selection::of`].
    pub fn parse_on(text: &str, device: DeviceKind) -> Result<Self, SelectionError> {
        let mut set: Option<BTreeSet<Optimization>> = None;
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match (word, &mut set) {
                ("none", _) => {
                    set.get_or_insert_default();
                }
                ("exact", _) => set.get_or_insert_default().extend(Self::exact_on(device).set),
                ("all", _) => set.get_or_insert_default().extend(Self::all_on(device).set),
                (name, set) => {
                    let (name, remove) = name.strip_prefix('-').map_or((name, false), |rest| (rest, true));
                    let found = Optimization::by_name(name);
                    let optimization = found.ok_or_else(|| SelectionError::Unknown { name: name.to_owned() })?;
                    match (remove, set) {
                        (false, set) => {
                            set.get_or_insert_default().insert(optimization);
                        }
                        (true, Some(set)) => {
                            set.remove(&optimization);
                        }
                        (true, None) => return Err(SelectionError::NothingToRemove { name: name.to_owned() }),
                    }
                }
            }
        }
        Self::of_on(device, set.ok_or(SelectionError::Empty)?)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.set.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.iter().map(Optimization::name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{ActivationKind, WeightKind};

    fn check(text: &str, expected: &str) {
        let shown = match text.parse::<Selection>() {
            Ok(selection) => selection.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn words_become_sets() {
        check("none", "none");
        check(" paged-kv , continuous-batching", "continuous-batching,paged-kv");
        check("none,prefix-cache,paged-kv", "paged-kv,prefix-cache");
        check("all,-fast-sampler", &Selection::all().without(Optimization::FastSampler).to_string());
        let names = Selection::exact().iter().map(|o| format!(",-{}", o.name())).collect::<String>();
        check(&format!("exact{names}"), "none");
    }

    #[test]
    fn nonsense_is_explained() {
        let list = format!("choose none, exact, all, or names out of: {}", choices());
        check("", &format!("no optimization named; {list}"));
        check("turbo", &format!("unknown optimization `turbo`; {list}"));
        check("all,-turbo", &format!("unknown optimization `turbo`; {list}"));
        check("-paged-kv", "`-paged-kv` takes nothing away; write `all,-paged-kv` or `exact,-paged-kv`");
        check("prefix-cache", "prefix-cache needs paged-kv; add `paged-kv` or leave prefix-cache out");
        check("all,-paged-kv", "prefix-cache needs paged-kv; add `paged-kv` or leave prefix-cache out");
    }

    #[test]
    fn a_device_decides_what_applies() {
        let on_cuda = |text: &str| match Selection::parse_on(text, DeviceKind::Cuda) {
            Ok(selection) => selection.to_string(),
            Err(error) => error.to_string(),
        };
        let fix = "leave it out, or choose another --device";
        assert_eq!(on_cuda("pinned-pool"), format!("pinned-pool does not apply on cuda; {fix}"));
        check("all,cuda-graphs", &format!("cuda-graphs does not apply on cpu; {fix}"));
        let needs = "flash-attention needs fast-linear; add `fast-linear` or leave flash-attention out";
        assert_eq!(on_cuda("paged-kv,flash-attention"), needs);
        assert_eq!(on_cuda("paged-kv"), "paged-kv");
        check("activations-fp8", &format!("activations-fp8 does not apply on cpu; {fix}"));
        for (cpu, cuda) in [
            (Selection::all(), Selection::all_on(DeviceKind::Cuda)),
            (Selection::exact(), Selection::exact_on(DeviceKind::Cuda)),
        ] {
            assert!(cpu.on(DeviceKind::Cpu).is_ok() && cuda.on(DeviceKind::Cuda).is_ok());
            assert!(cpu.on(DeviceKind::Cuda).is_err() || !cpu.contains(Optimization::PinnedPool));
            assert!(!cuda.contains(Optimization::PinnedPool) && !cpu.contains(Optimization::CudaGraphs));
        }
        assert!(Selection::all_on(DeviceKind::Cuda).contains(Optimization::CudaGraphs));
    }

    #[test]
    fn activations_are_rounded_only_where_that_was_asked_for_beside_fp8_weights() {
        let on_cuda = |text: &str| Selection::parse_on(text, DeviceKind::Cuda);
        let needs = "activations-fp8 needs weights-fp8; add `weights-fp8` or leave activations-fp8 out";
        for text in ["activations-fp8", "all,activations-fp8", "all,weights-int8,activations-fp8"] {
            assert_eq!(on_cuda(text).unwrap_err().to_string(), needs, "{text}");
        }
        let selection = on_cuda("all,weights-fp8,activations-fp8").unwrap();
        assert_eq!(selection.plan().activations, ActivationKind::Fp8);
        assert_eq!(selection.plan().weights, WeightKind::Fp8);
        let left = selection.without(Optimization::WeightsFp8);
        assert_eq!(left, Selection::all_on(DeviceKind::Cuda));
        for other in [left, Selection::exact_on(DeviceKind::Cuda), on_cuda("all,weights-fp8").unwrap()] {
            assert_eq!(other.plan().activations, ActivationKind::Bf16, "{other}");
        }
    }

    #[test]
    fn printing_and_parsing_are_inverse() {
        for selection in [Selection::none(), Selection::exact(), Selection::all()] {
            assert_eq!(selection.to_string().parse(), Ok(selection));
        }
    }
}
