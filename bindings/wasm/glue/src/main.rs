//! Writes the JavaScript glue for one wasm module, for a page that loads it as an ES module.
//! It is the `wasm-bindgen` command without its 160 dependencies, and knows only the one output that we ship.
//!
//! `valkyrie-wasm-glue INPUT.wasm OUT_DIR OUT_NAME`

use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, out_dir, out_name] = arguments.as_slice() else {
        eprintln!("usage: valkyrie-wasm-glue INPUT.wasm OUT_DIR OUT_NAME");
        return ExitCode::from(2);
    };
    let mut bindgen = Bindgen::new();
    let written = bindgen
        .input_path(input)
        .out_name(out_name)
        .typescript(true)
        // With it left out, `init()` without an argument cannot find the module beside the script.
        .omit_default_module_path(false)
        // Names and producers are of no use to a page; wasm-opt strips what is left.
        .remove_name_section(true)
        .remove_producers_section(true)
        .web(true)
        .and_then(|bindgen| bindgen.generate(out_dir));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("valkyrie-wasm-glue: {input}: {error:#}");
            ExitCode::from(1)
        }
    }
}
