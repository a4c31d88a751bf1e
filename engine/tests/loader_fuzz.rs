//! Damaged files through the whole loader: an error of one line or a usable model, never a panic, never memory out of
//! proportion. `AISP_FUZZ_ITERS` sets the number of mutants of each test.
// A test ends where it fails; clippy's own exception does not reach helper functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod loader_support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use aisp_engine::loader::{LoadOptions, ModelSource, load, load_gguf_bytes};
use loader_support::gguf::GgufFile;
use loader_support::{check_outcome, hf, mutate};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn num_iterations(default: u64) -> u64 {
    std::env::var("AISP_FUZZ_ITERS").map_or(default, |text| text.parse().expect("AISP_FUZZ_ITERS is a number"))
}

/// The most address space that the process ever had. Units: bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// Runs `once` for every iteration on all cores, each with its own generator, and reports the first that panics. Returns
/// how many mutants loaded.
fn fuzz(iterations: u64, once: impl Fn(usize, &mut ChaCha8Rng) -> bool + Sync) -> u64 {
    const MAX_GROWTH_BYTES: u64 = 1 << 30;
    let before = peak_bytes();
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let run = |thread: u64| {
        let mut num_loaded = 0;
        for iteration in (thread..iterations).step_by(num_threads as usize) {
            let mut rng = ChaCha8Rng::seed_from_u64(iteration);
            match catch_unwind(AssertUnwindSafe(|| once(thread as usize, &mut rng))) {
                Ok(loaded) => num_loaded += u64::from(loaded),
                Err(_) => panic!("mutant {iteration} broke the loader"),
            }
        }
        num_loaded
    };
    let num_loaded = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no mutant breaks the loader")).sum()
    });
    let growth = peak_bytes().saturating_sub(before);
    assert!(growth < MAX_GROWTH_BYTES, "small files took {growth} bytes of address space");
    num_loaded
}

#[test]
fn damaged_gguf_files() {
    let originals: Vec<_> = GgufFile::variety().iter().map(GgufFile::write).collect();
    let options = LoadOptions::default();
    for (bytes, _) in &originals {
        assert!(load_gguf_bytes(bytes, "original.gguf", &options).is_ok());
    }
    let iterations = num_iterations(100_000);
    let num_loaded = fuzz(iterations, |_, rng| {
        let (bytes, fields) = originals.choose(rng).expect("not empty");
        let mut bytes = bytes.clone();
        let header = fields.last().map_or(0, |(at, width)| at + width);
        mutate::binary(&mut bytes, fields, header, rng);
        let mut outcome = load_gguf_bytes(&bytes, "mutant.gguf", &options);
        check_outcome(&mut outcome);
        outcome.is_ok()
    });
    println!("{iterations} GGUF mutants, {num_loaded} loaded");
    assert!(num_loaded > 0 && num_loaded < iterations, "mutants must be neither all good nor all bad: {num_loaded}");
}

#[test]
fn damaged_folders() {
    let originals = [hf::folder(), hf::sharded_folder()];
    // In memory where the system has such a file system.
    let parent = [PathBuf::from("/dev/shm"), std::env::temp_dir()].into_iter().find(|path| path.is_dir()).unwrap();
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let folders: Vec<_> = (0..num_threads).map(|_| tempfile::tempdir_in(&parent).unwrap()).collect();
    let paths: Vec<[PathBuf; 2]> = folders.iter().map(|f| [f.path().join("one"), f.path().join("shards")]).collect();
    for pair in &paths {
        for (path, files) in pair.iter().zip(&originals) {
            std::fs::create_dir(path).unwrap();
            hf::write(files, path);
        }
    }
    let options = LoadOptions::default();
    let iterations = num_iterations(30_000);
    let num_loaded = fuzz(iterations, |thread, rng| {
        let which = rng.random_range(0..originals.len());
        let (files, folder) = (&originals[which], &paths[thread][which]);
        let names: Vec<&String> = files.keys().collect();
        let name = *names.choose(rng).expect("not empty");
        let mut bytes = files[name].clone();
        if name.ends_with(".safetensors") {
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            mutate::binary(&mut bytes, &[(0, 8)], 8 + header, rng);
        } else {
            mutate::json(&mut bytes, rng);
        }
        std::fs::write(folder.join(name), &bytes).unwrap();
        let mut outcome = load(&ModelSource::Folder(folder.clone()), &options);
        std::fs::write(folder.join(name), &files[name]).unwrap();
        check_outcome(&mut outcome);
        outcome.is_ok()
    });
    println!("{iterations} folder mutants, {num_loaded} loaded");
    assert!(num_loaded > 0 && num_loaded < iterations, "mutants must be neither all good nor all bad: {num_loaded}");
}

/// The harness must notice what it looks for.
#[test]
fn a_panic_or_a_second_line_is_noticed() {
    let quiet = catch_unwind(|| fuzz(10, |_, rng| if rng.random_ratio(1, 2) { panic!("on purpose") } else { true }));
    assert!(quiet.is_err());
    let error = aisp_engine::loader::LoadError::FeatureOff { what: "a\nb".into(), feature: "x" };
    assert!(catch_unwind(|| check_outcome(&mut Err(error))).is_err());
}
