package sdk_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/wire"
)

// An author's build must not grow with Muster: of Muster itself the SDK may
// import the contract and the glue of the wire, and nothing else; of other
// modules those that speak gRPC and read payloads.
func TestTheImportsStayFew(t *testing.T) {
	t.Parallel()
	const muster = "github.com/musterhq/muster/"
	ours := map[string]bool{
		muster + "api/muster/v1": true, muster + "api/muster/executor/v1": true,
		muster + "plugins/wire": true, muster + "plugins/sdk": true,
	}
	modules := map[string]bool{
		"github.com/musterhq/muster":                true,
		"github.com/fatih/color":                    true,
		"github.com/golang/protobuf":                true,
		"github.com/google/jsonschema-go":           true,
		"github.com/hashicorp/go-hclog":             true,
		"github.com/hashicorp/go-plugin":            true,
		"github.com/hashicorp/yamux":                true,
		"github.com/mattn/go-colorable":             true,
		"github.com/mattn/go-isatty":                true,
		"github.com/oklog/run":                      true,
		"golang.org/x/net":                          true,
		"golang.org/x/sys":                          true,
		"golang.org/x/text":                         true,
		"google.golang.org/genproto/googleapis/api": true,
		"google.golang.org/genproto/googleapis/rpc": true,
		"google.golang.org/grpc":                    true,
		"google.golang.org/protobuf":                true,
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f",
		"{{if .Module}}{{.Module.Path}} {{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		module, path, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found {
			continue
		}
		if !modules[module] {
			t.Errorf("the SDK has come to import %s, of a module that is not in this test's list", path)
		}
		if strings.HasPrefix(path, muster) && !ours[path] {
			t.Errorf("the SDK must not import %s", path)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	for name, test := range map[string]struct {
		err       error
		temporary bool
		blame     wire.Blame
		field     string
		text      string
	}{
		"temporary":   {sdk.Temporary(cause, time.Minute), true, wire.BlameNobody, "", "cause"},
		"node":        {sdk.NodeFault(cause), false, wire.BlameNode, "", "cause"},
		"spec":        {sdk.SpecFault("mounts[0]", cause), false, wire.BlameSpec, "mounts[0]", "mounts[0]: cause"},
		"spec, whole": {sdk.SpecFault("", cause), false, wire.BlameSpec, "", "cause"},
		"failed":      {sdk.Failed(cause), false, wire.BlameNobody, "", "cause"},
	} {
		var got *wire.Error
		if !errors.As(test.err, &got) || !errors.Is(test.err, cause) {
			t.Errorf("%s: %v does not hold its cause", name, test.err)
			continue
		}
		if got.Temporary != test.temporary || got.Blame != test.blame || got.Field != test.field || got.Error() != test.text {
			t.Errorf("%s: %+v, want %+v", name, got, test)
		}
	}
	if !sdk.IsNotFound(sdk.NotFound("t1")) || sdk.IsNotFound(cause) {
		t.Error("IsNotFound does not tell NotFound from other errors")
	}
}

func TestAHandleIsReadOnlyInItsVersion(t *testing.T) {
	t.Parallel()
	type state struct{ ID string }
	handle, err := sdk.NewHandle(2, state{ID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		handle  sdk.Handle
		version int
		want    bool
	}{
		"same":    {handle, 2, true},
		"older":   {handle, 3, false},
		"newer":   {handle, 1, false},
		"empty":   {nil, 2, false},
		"no JSON": {sdk.Handle("2 {"), 2, false},
		"noise":   {sdk.Handle("\x00\xff noise"), 2, false},
	} {
		var got state
		if ok := test.handle.Read(test.version, &got); ok != test.want || (ok && got.ID != "c1") {
			t.Errorf("%s: Read = %t, %+v", name, ok, got)
		}
	}
}
