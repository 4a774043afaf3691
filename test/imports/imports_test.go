// Package imports_test holds the rule that imports point one way: programs use
// daemons, daemons use what is internal, and that uses the contract.
package imports_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/musterhq/muster/"

// daemons are the packages that must not know each other.
var daemons = []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd", "workerd"}

// listed is what `go list` says of a package, as far as it matters here.
type listed struct {
	ImportPath string
	Imports    []string
}

// list lists all packages of the module in a folder.
func list(t *testing.T, folder string) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = filepath.Join("../..", folder)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("go list: %v\n%s", err, errs.String())
	}
	var packages []listed
	for d := json.NewDecoder(&out); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// layer is where a package of ours lies; "" for those of others. The kit of the tests
// is a layer of its own.
func layer(path string) string {
	rest, ours := strings.CutPrefix(path, module)
	switch {
	case !ours:
		return ""
	case strings.HasPrefix(rest, "test/kit/"):
		return "kit"
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func TestImportsPointOneWay(t *testing.T) {
	allowed := map[string][]string{
		"api":     {"api"},
		"plugins": {"plugins", "api"},
		// provision writes the Consul policies that ship with compose.
		"internal": {"internal", "api", "compose"},
		"cmd":      append([]string{"cmd", "internal", "plugins", "api", "compose", "stack", "dockerapi"}, daemons...),
		// What a client makes of a stack, with the API only.
		"stack": {"stack", "internal", "api"},
		// Docker's API: a client of the control API, and nothing more.
		"dockerapi": {"dockerapi", "api"},
		// Files that ship, for programs that install them. It imports nothing.
		"compose": {},
		// Programs that show how Muster is used, and need nothing of it.
		"examples": {},
		"bench":    {"kit", "internal", "workerd", "plugins", "api", "stack"},
		"test":     {"test", "kit", "internal", "plugins", "api", "compose", "stack"},
		// What tests start: it knows programs, and no package of a daemon. The product
		// must not import it, except in its tests.
		"kit": {"kit", "internal", "api", "compose"},
		// All of Muster in one process.
		"simulation": append([]string{"simulation", "internal", "plugins", "api"}, daemons...),
	}
	for _, d := range daemons {
		allowed[d] = []string{d, "internal", "api"}
	}
	// The worker hosts plugins, and shares with them what lies beneath the
	// contract.
	allowed["workerd"] = append(allowed["workerd"], "plugins")
	packages := slices.Concat(list(t, "."), list(t, "bench"), list(t, "simulation"))
	for _, p := range packages {
		from := layer(p.ImportPath)
		if _, known := allowed[from]; !known {
			t.Errorf("%s lies in no layer: say here which packages it may import", p.ImportPath)
			continue
		}
		for _, path := range p.Imports {
			if to := layer(path); to != "" && !slices.Contains(allowed[from], to) {
				t.Errorf("%s imports %s: packages of %q may import %q only", p.ImportPath, path, from, allowed[from])
			}
		}
	}
}

// TestProductRequiresNoTestLibraries checks that libraries of the modules for
// measurements and simulations stay out of the product's module.
func TestProductRequiresNoTestLibraries(t *testing.T) {
	file, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, library := range []string{"gonum.org/v1/plot", module + "bench", module + "simulation"} {
		if bytes.Contains(file, []byte(library)) {
			t.Errorf("go.mod requires %s, which only tests or measurements use: import it from a module of its own", library)
		}
	}
}

// TestModulesForOthers holds what people outside import, the contract and the
// SDK for executors, to what their modules may take of Muster: nothing, and the
// contract. Which modules of others the SDK needs is pinned by its own test.
func TestModulesForOthers(t *testing.T) {
	for folder, allowed := range map[string][]string{
		"api":         {module + "api/"},
		"plugins/sdk": {module + "plugins/sdk", module + "api/"},
	} {
		for _, p := range list(t, folder) {
			for _, path := range p.Imports {
				if layer(path) != "" && !slices.ContainsFunc(allowed, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
					t.Errorf("%s imports %s", p.ImportPath, path)
				}
			}
		}
	}
}

// TestLayersOfApid holds each package of apid to the packages below it: the root puts
// together, control serves, and neither objects nor validate know of a request.
func TestLayersOfApid(t *testing.T) {
	checkLayers(t, "apid", map[string][]string{
		// For tests.
		"apidtest":  {},
		"authority": {"backend", "sealing", "status", "validate"},
		"backend":   {"objects", "validate"},
		// For tests.
		"backend/backendtest": {"backend", "objects"},
		"blobs":               {"backend"},
		"control":             {"authority", "backend", "blobs", "logs", "probes", "objects", "sealing", "status", "tokens", "validate"},
		"gateway":             {},
		"logs":                {"objects"},
		"probes":              {},
		"objects":             {},
		"rest":                {"gateway", "validate"},
		"sealing":             {"backend"},
		"status":              {},
		"sweep":               {"backend", "objects"},
		"tokens":              {"backend", "validate"},
		"validate":            {},
	})
}

// TestLayersOfDispatcherd holds each package of dispatcherd to the packages below
// it. The daemon itself only connects them.
func TestLayersOfDispatcherd(t *testing.T) {
	checkLayers(t, "dispatcherd", map[string][]string{
		"internal/assignments":                 {},
		"internal/assignments/assignmentstest": {},
		"internal/bounds":                      {},
		"internal/calls":                       {},
		"internal/networks":                    {"internal/assignments"},
		"internal/logs":                        {"internal/bounds", "internal/calls"},
		"internal/probes":                      {"internal/bounds", "internal/calls"},
		"internal/statuses":                    {"internal/bounds"},
		"internal/liveness":                    {"internal/assignments", "internal/bounds", "internal/calls", "internal/statuses"},
		"internal/session": {
			"internal/assignments", "internal/bounds", "internal/calls", "internal/liveness", "internal/logs", "internal/probes", "internal/statuses",
		},
	})
}

// TestOnlyAdapterKnowsExecutorContract checks that the worker knows the messages of the
// executor contract in one package for each version, and that tasks know nothing of
// plugins.
func TestOnlyAdapterKnowsExecutorContract(t *testing.T) {
	const contract, adapter = module + "api/muster/executor/v1", module + "workerd/executor/contractv1"
	adapted := false
	for _, p := range list(t, "workerd") {
		for _, path := range p.Imports {
			switch {
			case path == contract && p.ImportPath == adapter:
				adapted = true
			case path == contract:
				t.Errorf("%s imports %s: use workerd/executor instead", p.ImportPath, path)
			case p.ImportPath == module+"workerd/internal/tasks" && strings.HasPrefix(path, module+"plugins/"):
				t.Errorf("%s imports %s: tasks call executors only through workerd/executor", p.ImportPath, path)
			}
		}
	}
	if !adapted {
		t.Errorf("%s does not import %s: is the adapter elsewhere?", adapter, contract)
	}
}

// TestFewPackagesKnowNetworkContract checks that the worker calls network plugins in one
// package for each version of their contract. The objects that a dispatcher sends are
// messages of the contract too, and known where they are kept.
func TestFewPackagesKnowNetworkContract(t *testing.T) {
	const contract = module + "api/muster/network/v1"
	allowed := []string{"workerd/network", "workerd/network/contractv1", "workerd/internal/networks"}
	for _, p := range list(t, "workerd") {
		if slices.Contains(p.Imports, contract) && !slices.Contains(allowed, strings.TrimPrefix(p.ImportPath, module)) {
			t.Errorf("%s imports %s: use workerd/network instead", p.ImportPath, contract)
		}
	}
}

// checkLayers checks that each package of a daemon imports only the packages of the
// daemon that its layer allows. The daemon's root may import all of them.
func checkLayers(t *testing.T, daemon string, allowed map[string][]string) {
	t.Helper()
	for _, p := range list(t, daemon) {
		name, below := strings.CutPrefix(p.ImportPath, module+daemon+"/")
		if !below {
			continue
		}
		layers, known := allowed[name]
		if !known {
			t.Errorf("%s lies in no layer: say here which packages of %s it may import", p.ImportPath, daemon)
			continue
		}
		for _, path := range p.Imports {
			other, ours := strings.CutPrefix(path, module+daemon)
			if ours && !slices.Contains(layers, strings.TrimPrefix(other, "/")) {
				t.Errorf("%s imports %s: it may import %q of %s only", p.ImportPath, path, layers, daemon)
			}
		}
	}
}
