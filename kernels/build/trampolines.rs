//! C source of the trampolines: a jump through a slot for each function of the CUDA libraries, and a loader that opens
//! one library and fills its slots.

use std::fmt::Write;

/// Functions that candle's CUDA layer and our kernels call, a library a section:
/// `nm -u libcudarc-*.rlib | grep -oE '(cu|nvrtc)[A-Za-z0-9_]+$' | sort -u`.
const FUNCTIONS: &str = include_str!("cuda_functions.txt");

/// Source for a target architecture.
pub fn source(target: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    // First slot of each library.
    let mut libraries: Vec<usize> = Vec::new();
    for line in FUNCTIONS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('#') {
            Some(_) => libraries.push(names.len()),
            None => names.push(line),
        }
    }
    libraries.push(names.len());
    let mut text = String::from(HEAD);
    let _ = writeln!(text, "#define COUNT {}", names.len());
    let starts: Vec<String> = libraries.iter().map(usize::to_string).collect();
    let _ = writeln!(text, "static const int starts[] = {{ {} }};", starts.join(", "));
    text.push_str("static const char *const names[] = {\n");
    for name in &names {
        let _ = writeln!(text, "  \"{name}\",");
    }
    text.push_str("};\n");
    text.push_str(
        "__attribute__((visibility(\"hidden\"))) void *aisp_slots[COUNT] = { [0 ... COUNT - 1] = not_loaded };\n",
    );
    for (index, name) in names.iter().enumerate() {
        let jump = jump(target, 8 * index);
        let _ = writeln!(
            text,
            "__asm__(\".text\\n.globl {name}\\n.hidden {name}\\n.type {name},%function\\n{name}:\\n{jump}\");"
        );
    }
    text.push_str(TAIL);
    text
}

/// Registers hold the arguments of the call, so that nothing but the slot may be touched.
fn jump(target: &str, offset: usize) -> String {
    match target {
        "aarch64" => format!("adrp x16, aisp_slots+{offset}\\nldr x16, [x16, :lo12:aisp_slots+{offset}]\\nbr x16\\n"),
        _ => format!("jmp *aisp_slots+{offset}(%rip)\\n"),
    }
}

const HEAD: &str = r#"#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void not_loaded(void) {
  fputs("a function of a CUDA library was called before the library was opened, or this version lacks it\n", stderr);
  abort();
}
"#;

const TAIL: &str = r#"
/* Opens a library by one of the names in a null-terminated list and fills its slots; 0, or the loader's last message. */
const char *aisp_open_library(int library, const char *const *candidates) {
  void *handle = 0;
  const char *message = "no name";
  for (; *candidates && !handle; ++candidates) {
    handle = dlopen(*candidates, RTLD_NOW | RTLD_GLOBAL);
    if (!handle) message = dlerror();
  }
  if (!handle) return message;
  for (int i = starts[library]; i < starts[library + 1]; ++i) {
    void *found = dlsym(handle, names[i]);
    if (found) aisp_slots[i] = found;
  }
  return 0;
}
"#;
