//! The layers go one way: a module uses only those that `src/lib.rs` declares above it.

use std::{collections::BTreeSet, fs, path::Path};

/// The modules in the order of their declarations.
fn declared() -> Vec<String> {
    let lib = fs::read_to_string("src/lib.rs").expect("src/lib.rs");
    let mut modules = Vec::new();
    for line in lib.lines() {
        if let Some(list) = line.strip_prefix("without_loom! {") {
            modules.extend(list.trim_end_matches('}').split_whitespace().map(str::to_owned));
        } else if let Some(name) = line.split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';'))
            && line.starts_with("pub")
        {
            modules.push(name.to_owned());
        }
    }
    modules
}

/// The first name of every path behind `crate::`, those in braces included.
fn imports(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        let name =
            |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if !rest.starts_with('{') {
            found.insert(name(rest));
            continue;
        }
        let mut depth = 0;
        let mut expect_name = false;
        for (offset, c) in rest.char_indices() {
            match c {
                '{' => {
                    depth += 1;
                    expect_name = depth == 1;
                }
                '}' => depth -= 1,
                ',' if depth == 1 => expect_name = true,
                c if expect_name && !c.is_whitespace() => {
                    found.insert(name(&rest[offset..]));
                    expect_name = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// The files of a module: `src/name.rs`, or all under `src/name/`.
fn sources(module: &str) -> Vec<String> {
    let file = format!("src/{module}.rs");
    if Path::new(&file).exists() {
        return vec![file];
    }
    let folder = fs::read_dir(format!("src/{module}")).expect("a folder named as the module");
    folder.map(|entry| entry.expect("an entry").path().display().to_string()).collect()
}

#[test]
fn a_module_uses_only_what_is_declared_above_it() {
    let modules = declared();
    assert!(modules.len() > 15, "src/lib.rs declares {modules:?}");
    let mut arrows_up = Vec::new();
    for (place, module) in modules.iter().enumerate() {
        for file in sources(module) {
            let source = fs::read_to_string(&file).expect("a source");
            for import in imports(&source) {
                let above = modules[..place].contains(&import) || import == *module;
                if !above {
                    arrows_up.push(format!("{file} uses crate::{import}"));
                }
            }
        }
    }
    assert!(arrows_up.is_empty(), "against the layers:\n{}", arrows_up.join("\n"));
}

#[test]
fn every_source_belongs_to_a_declared_module() {
    let modules = declared();
    for entry in fs::read_dir("src").expect("src") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let module = name.trim_end_matches(".rs");
        assert!(module == "lib" || modules.contains(&module.to_owned()), "src/{name} is not declared");
    }
}

#[test]
fn imports_are_found_in_braces_and_in_paths() {
    let source = "use crate::{\n    a::{self, B},\n    c,\n};\nuse crate::d::E;\nfn f() { crate::g::h() }";
    let expected: BTreeSet<String> = ["a", "c", "d", "g"].map(str::to_owned).into();
    assert_eq!(imports(source), expected);
}
