//! Under the feature `cuda`: compiles `cuda/*.cu` with nvcc and embeds the machine code, and links every function of a
//! CUDA library to a trampoline that is filled when the library is opened. So a build needs no GPU and no driver, and a
//! binary starts without any CUDA library and can say in its own words which one is missing.
//!
//! `CUDA_ARCHS` names what to compile for (`80 89 90a`, the default, and PTX of the last), `NVCC` the compiler.

#![allow(clippy::expect_used, clippy::panic, reason = "a build script reports by panicking")]

#[path = "build/trampolines.rs"]
mod trampolines;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::SystemTime;

/// Sources of the kernels, beside this file.
const SOURCES: &str = "cuda";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed={SOURCES}");
    for variable in ["NVCC", "CUDA_ARCHS", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-env=AISP_CUDA_MAJOR={}", toolkit_major());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo names OUT_DIR"));
    let mut objects = compile_kernels(&out);
    objects.push(compile_trampolines(&out));
    archive(&objects, &out.join("libaisp_cuda.a"));
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=aisp_cuda");
    // Whole, so that candle's kernels find every function in it and libcudart.so is needed by nobody.
    println!("cargo:rustc-link-search=native={}", cudart_folder().display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=cudart_static");
    for library in ["stdc++", "dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
}

fn nvcc() -> PathBuf {
    env::var_os("NVCC").map_or_else(|| "nvcc".into(), PathBuf::from)
}

/// Where `libcudart_static.a` lies: below the toolkit that nvcc belongs to.
fn cudart_folder() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let beside_nvcc = nvcc().canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_path_buf()));
    let folders = homes.chain(beside_nvcc).chain(["/usr/local/cuda".into(), "/usr".into()]);
    let libraries = folders.flat_map(|home| {
        ["lib64", "lib", "targets/x86_64-linux/lib", "lib/x86_64-linux-gnu"].map(|lib| home.join(lib))
    });
    libraries
        .into_iter()
        .find(|folder| folder.join("libcudart_static.a").exists())
        .unwrap_or_else(|| panic!("libcudart_static.a is not found: build with `make cuda`, or set CUDA_HOME"))
}

/// Flags that name the machine code: one image an architecture, and PTX of the last for newer cards.
fn architecture_flags() -> Vec<String> {
    let list = env::var("CUDA_ARCHS").unwrap_or_else(|_| "80 89 90a".into());
    let archs: Vec<&str> = list.split([' ', ',']).filter(|arch| !arch.is_empty()).collect();
    let image = |arch: &&str| format!("-gencode=arch=compute_{arch},code=sm_{arch}");
    let mut flags: Vec<String> = archs.iter().map(image).collect();
    // `90a` code runs on no later card, so its PTX would not either.
    let portable = archs.last().map_or("90", |arch| arch.trim_end_matches('a'));
    flags.push(format!("-gencode=arch=compute_{portable},code=compute_{portable}"));
    flags
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Compiles what is older than its source, its headers or its flags, `NUM_JOBS` at a time.
fn compile_kernels(out: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Path::new(SOURCES)
        .read_dir()
        .map_or_else(|_| Vec::new(), |dir| dir.flatten().map(|file| file.path()).collect());
    files.sort();
    let has_extension =
        |path: &PathBuf, wanted: &[&str]| path.extension().is_some_and(|e| wanted.iter().any(|w| e == *w));
    let headers = files.iter().filter(|file| has_extension(file, &["h", "cuh"])).map(|file| modified(file)).max();
    let newest_header = headers.unwrap_or(SystemTime::UNIX_EPOCH).max(modified(Path::new("build.rs")));
    let flags = architecture_flags();
    let key: String = flags.concat().chars().filter(char::is_ascii_alphanumeric).collect();
    let key = key.replace("gencodearchcompute", "").replace("codesm", "s").replace("codecompute", "p");
    let num_jobs: usize = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let (mut objects, mut running): (Vec<PathBuf>, Vec<(PathBuf, Child)>) = (Vec::new(), Vec::new());
    for source in files.iter().filter(|file| has_extension(file, &["cu"])) {
        let stem = source.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let object = out.join(format!("{stem}-{key}.o"));
        objects.push(object.clone());
        if modified(&object) > modified(source).max(newest_header) {
            continue;
        }
        if running.len() >= num_jobs {
            finish(running.remove(0));
        }
        let mut command = Command::new(nvcc());
        command.args(["-c", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler", "-fPIC"]);
        command.args(&flags).arg("-o").arg(&object).arg(source);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{} does not start ({error}): build with `make cuda`, which fetches a compiler", nvcc().display())
        });
        running.push((object, child));
    }
    running.into_iter().for_each(finish);
    objects
}

fn finish((object, mut child): (PathBuf, Child)) {
    let passed = child.wait().is_ok_and(|status| status.success());
    if !passed {
        // Half an object must not look finished to the next build.
        let _ = std::fs::remove_file(&object);
        panic!("nvcc failed on {}", object.display());
    }
}

fn compile_trampolines(out: &Path) -> PathBuf {
    let (source, object) = (out.join("trampolines.c"), out.join("trampolines.o"));
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    std::fs::write(&source, trampolines::source(&target)).expect("OUT_DIR can be written");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    run(Command::new(compiler).args(["-c", "-O2", "-fPIC", "-o"]).arg(&object).arg(&source));
    object
}

fn archive(objects: &[PathBuf], library: &Path) {
    let _ = std::fs::remove_file(library);
    run(Command::new(env::var_os("AR").unwrap_or_else(|| "ar".into())).arg("rcs").arg(library).args(objects));
}

fn run(command: &mut Command) {
    let passed = command.status().is_ok_and(|status| status.success());
    assert!(passed, "{command:?} failed");
}

/// Major version of the toolkit, which names the run-time libraries.
fn toolkit_major() -> String {
    let output = Command::new(nvcc()).arg("--version").output().unwrap_or_else(|error| {
        panic!("{} does not start ({error}): build with `make cuda`, which fetches a compiler", nvcc().display())
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    release.unwrap_or_else(|| panic!("{} does not say its release: {text}", nvcc().display())).to_owned()
}
