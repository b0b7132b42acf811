//! Each file in `passes/` is three parts with lines `---` between: the passes to run, the unit before, the unit after.
//! `NETPOLC_BLESS=1` writes the units after as they are; read the difference before you keep it.

use netpolc_ir::passes::{self, ALL, Pass};
use netpolc_ir::{text, verify};
use std::path::Path;

#[test]
fn passes_do_what_the_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in &files {
        let content = std::fs::read_to_string(file).unwrap();
        let parts: Vec<&str> = content.split("---\n").collect();
        let [names, input, expected] = parts[..] else { panic!("{} has not three parts", file.display()) };
        let before =
            verify::verify(text::parse(input).unwrap()).unwrap_or_else(|v| panic!("{v:?} in {file:?}"));
        let words = names.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace);
        let passes: Vec<Pass> = words
            .flat_map(|name| match name {
                "pipeline" => passes::pipeline().to_vec(),
                name => vec![*ALL.iter().find(|p| p.name == name).unwrap()],
            })
            .collect();
        let after = text::write(&passes::run_passes(&passes, before, |_| ()).unwrap());
        if std::env::var_os("NETPOLC_BLESS").is_some() {
            std::fs::write(file, format!("{names}---\n{input}---\n{after}")).unwrap();
        } else {
            assert_eq!(after, expected, "{}", file.display());
        }
    }
    assert!(files.len() >= 8);
}
