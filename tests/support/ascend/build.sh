#!/bin/bash
# Build stand-ins for CANN's libraries, for the MindSpore that is installed in PYTHON. With them MindSpore's Ascend back end, which is in
# its ordinary package, loads and compiles graphs in its dry run. Nothing can be computed: every function does nothing.
# Which libraries and which functions are missing is read from MindSpore's own Ascend libraries.
set -euo pipefail
export LC_ALL=C
stop() { echo "build.sh: $*" >&2; exit 2; }

[ $# -ge 1 ] && [ $# -le 2 ] || stop "usage: build.sh OUT [PYTHON]"
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${2:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || stop "only for Linux on x86-64, this is $(uname -s) $(uname -m)"
for tool in gcc g++ nm strings c++filt ldd; do
  command -v $tool > /dev/null || stop "$tool is missing: apt-get install gcc g++ binutils"
done
found=$("$python" - <<'END'
import importlib.metadata, importlib.util, os
spec = importlib.util.find_spec("mindspore")
print(importlib.metadata.version("mindspore") if spec else "", os.path.dirname(spec.origin) if spec else "")
END
) || stop "$python does not run, or has no package mindspore"
read -r version package <<< "$found" || true
[ -n "${package:-}" ] || stop "MindSpore is not installed in $python"
[ "$version" = 2.8.0 ] || stop "made for MindSpore 2.8.0, found $version"

lib=$package/lib
users=("$lib/plugin/libmindspore_ascend.so.2" "$lib/plugin/libmindspore_ops_ascend.so" "$lib/libmindspore_ge_backend.so"
       "$lib"/plugin/ascend/lib{mindspore_ascend_res_manager,mindspore_graph_ir,d_collective}.so)
[ -d "$lib/plugin/ascend" ] || stop "$lib/plugin/ascend is missing: not the wheel with the Ascend back end?"
users+=($(find "$lib/plugin/ascend" -name libshmem.so))
for user in "${users[@]}"; do [ -f "$user" ] || stop "this MindSpore has no $user: not the wheel with the Ascend back end?"; done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The parts written by hand. MindSpore's Ascend libraries use the old string type of libstdc++.
flags="-O1 -fPIC -w"
gcc $flags -c "$here/acl.c" -o "$work/acl.o"
g++ $flags -std=c++14 -D_GLIBCXX_USE_CXX11_ABI=0 -c "$here/ge.cc" -o "$work/ge.o"
nm --defined-only "$work/acl.o" "$work/ge.o" | awk 'NF == 3 {print $3}' | sort -u > "$work/by_hand"

# Functions: (1) what these libraries need and no library here defines, (2) names they look up at run time, which stand in them as text.
search=$lib:$lib/plugin:$lib/plugin/ascend
for user in "${users[@]}"; do LD_LIBRARY_PATH=$search ldd "$user" 2> /dev/null || true; done > "$work/ldd"
{ awk '/=> \// {print $3}' "$work/ldd"; find "$lib/plugin/ascend" -name '*.so'; printf '%s\n' "${users[@]}"; } | sort -u |
  xargs -d '\n' nm -D --defined-only 2> /dev/null | awk 'NF == 3 {sub("@.*", "", $3); print $3}' | sort -u > "$work/defined" || true
nm -D --undefined-only "${users[@]}" | awk '$1 == "U" {sub("@.*", "", $2); print $2}' | grep -vE '^_?Py' | sort -u | comm -23 - "$work/defined" > "$work/names"
strings -n 5 "${users[@]}" > "$work/strings"
grep -xE '(acl|Hccl|Hcom)[A-Z_a-z0-9]*' "$work/strings" | sed -E 's/^(aclnn.*)$/\1\n\1GetWorkspaceSize/' >> "$work/names"
sort -u "$work/names" | comm -23 - "$work/by_hand" | comm -23 - "$work/defined" > "$work/wanted"
paste -d ' ' "$work/wanted" <(c++filt < "$work/wanted") | sed -E '
  s/^(\S+) ge::(Operator|Graph)::(SetAttr|SetInputs?|SetOutputs|SetNeedIteration|AddControlInput)\(.*/SELF(\1)/; t
  s/^(\S+) ge::(TensorType::TensorType|Promote::Promote|GraphBuffer::GraphBuffer|Session::GetCompiledGraphSummary)\(.*/CLEAR(\1, 2)/; t
  s/^(\S+) ge::(GNode::Get(In|Out)[A-Z].*(Nodes|Indexs)|Graph::GetDirectNode)\(.*/CLEAR(\1, 3)/; t
  s/^(\S+) .*/ZERO(\1)/' > "$work/list"
{
  echo '/* made by build.sh */'
  echo 'long stand_in_called(const char *);'
  echo '#define ZERO(name) long name(void) { return stand_in_called(#name); }'
  echo '#define SELF(name) void *name(void *self) { return self; }'
  echo '#define CLEAR(name, words) void *name(long *it) { for (int i = 0; i < words; i++) it[i] = 0; return it; }'
  cat "$work/list"
} > "$work/generated.c"
gcc $flags -fno-builtin -c "$work/generated.c" -o "$work/generated.o"

# One library; every name of a missing library is a link to it. MindSpore looks for "cann/latest" in its path.
made=$work/made
home=$made/cann/latest/lib64
mkdir -p "$home"
g++ -shared -Wl,-soname,libcann_stand_in.so -o "$home/libcann_stand_in.so" "$work"/{acl,ge,generated}.o
awk '/not found/ {print $1}' "$work/ldd" | sort -u > "$work/missing"
grep -oE 'lib(opapi|acl_op_compiler|acl_tdt_channel)\.so' "$work/strings" >> "$work/missing"
sort -u "$work/missing" | while read -r name; do
  [ -n "$(find "$lib" -name "$name" -print -quit)" ] || ln -s libcann_stand_in.so "$home/$name"
done
gcc $flags -shared -o "$made/libcores.so" "$here/cores.c" -ldl

# init() of mindspore.communication wants to find CANN's Python package hccl, with a version.
mkdir -p "$made/python/hccl/sys_version"
touch "$made/python/hccl/__init__.py"
echo '__sys_version__ = "8.5.0"' > "$made/python/hccl/sys_version/__init__.py"

# Nothing of CANN may be left undefined.
left=$(for user in "${users[@]}"; do LD_LIBRARY_PATH=$home:$search ldd -r "$user" 2>&1 || true; done |
       sed -nE 's/^undefined symbol: (\S+).*/\1/p' | grep -vE '^_?Py' | sort -u | comm -23 - "$work/defined")
[ -z "$left" ] || stop "still undefined, MindSpore's Ascend back end will not load: $left"
mv "$made"/* "$out"
echo "built for MindSpore $version: $(wc -l < "$work/list") generated and $(wc -l < "$work/by_hand") hand-written functions, $(find "$out/cann" -type l | wc -l) library names, in $out"
