//! The house as docs/architecture.md draws it: no circle of files, and in the engine no arrow from a
//! room to one above it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, UseTree};

/// The engine's rooms, from pure to real: each uses those before it.
const ROOMS: [&str; 16] = [
    "memory",
    "codec",
    "policy",
    "guest",
    "driver",
    "proto",
    "predict",
    "session",
    "report",
    "link",
    "operator",
    "conductor",
    "wire",
    "source",
    "destination",
    "trial",
];

/// A module as its path of names from the crate's root.
type Module = Vec<String>;

/// Which modules a module names.
type Uses = BTreeMap<Module, BTreeSet<Module>>;

/// All paths of a file that begin at the crate, at itself or at its parent; of tests, none.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl Paths {
    fn add(&mut self, path: Vec<String>) {
        if path.first().is_some_and(|first| ["crate", "super", "self"].contains(&first.as_str())) {
            self.0.push(path);
        }
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
            UseTree::Name(name) => self.add(with(&name.ident)),
            UseTree::Rename(name) => self.add(with(&name.ident)),
            UseTree::Glob(_) => self.add(before.to_vec()),
        }
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "bin") {
            sources(&path, into);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            into.push(path);
        }
    }
}

/// The modules of a crate, one for each file, and what each names of the others.
fn uses(root: &str) -> Uses {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root);
    let mut files = Vec::new();
    sources(&root, &mut files);
    let modules: BTreeMap<Module, Paths> = files
        .into_iter()
        .map(|file| {
            let inside = file.strip_prefix(&root).unwrap().with_extension("");
            let names = inside.iter().map(|name| name.to_string_lossy().into_owned());
            let module = names.filter(|name| name != "mod").collect();
            let mut paths = Paths::default();
            paths.visit_file(&syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap());
            (module, paths)
        })
        .collect();
    let named = |module: &Module, path: &[String]| -> Option<Module> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let mut from = match path[0].as_str() {
            "crate" => Vec::new(),
            _ => module[..module.len().checked_sub(supers)?].to_vec(),
        };
        from.extend(path.iter().skip(supers.max(usize::from(supers == 0))).cloned());
        // The longest beginning that is a module; what follows is an item of it.
        let mut found = (1..=from.len()).rev().map(|n| &from[..n]);
        found.find(|found| modules.contains_key(*found)).map(<[String]>::to_vec)
    };
    let edges = modules.iter().map(|(module, paths)| {
        let named = paths.0.iter().filter_map(|path| named(module, path));
        // A file and the folder that it lies in are one thought.
        (module.clone(), named.filter(|other| !module.starts_with(other)).collect())
    });
    edges.collect()
}

/// Modules from which a way leads back to themselves.
fn circles(uses: &Uses) -> Vec<&Module> {
    let comes_back = |start: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(module) = next.pop() {
            for other in uses.get(module).into_iter().flatten() {
                if other == start {
                    return true;
                }
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
        false
    };
    uses.keys().filter(|module| comes_back(module)).collect()
}

#[test]
fn no_files_know_each_other() {
    for root in ["workload/src", "verifier/src", "migrate-core/src"] {
        let uses = uses(root);
        assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 10, "{root}: it was read");
        assert_eq!(circles(&uses), Vec::<&Module>::new(), "{root}");
    }
}

#[test]
fn no_room_of_the_engine_uses_one_above_it() {
    let place = |module: &Module| ROOMS.iter().position(|room| *room == module[0]);
    let uses = uses("migrate-core/src");
    let mut arrows = 0;
    for (module, others) in &uses {
        for other in others {
            if let (Some(from), Some(to)) = (place(module), place(other)) {
                assert!(to <= from, "{} uses {}", module.join("::"), other.join("::"));
                arrows += usize::from(to < from);
            }
        }
    }
    assert!(arrows > 50, "{arrows}: it was read");
    let rooms: BTreeSet<_> = uses.keys().map(|module| module[0].as_str()).collect();
    let unplaced: Vec<_> = rooms.iter().filter(|room| !ROOMS.contains(room)).copied().collect();
    assert_eq!(unplaced, ["clock", "error", "lib"], "every room has its place");
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let uses = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let uses: Uses = uses.iter().map(|(a, b)| (module(a), BTreeSet::from([module(b)]))).collect();
    assert_eq!(circles(&uses), [&module("a"), &module("b"), &module("c")]);
}
