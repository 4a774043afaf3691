package sdk_test

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// An author's build must not grow with Muster: it takes the SDK, the contract,
// and what speaks gRPC. go.mod of an executor lists these, "indirect" included.
func TestTheModulesStayFew(t *testing.T) {
	t.Parallel()
	want := []string{
		"github.com/musterhq/muster/api",
		"github.com/musterhq/muster/plugins/sdk",
		"golang.org/x/net",
		"golang.org/x/sys",
		"golang.org/x/text",
		"google.golang.org/genproto/googleapis/api",
		"google.golang.org/genproto/googleapis/rpc",
		"google.golang.org/grpc",
		"google.golang.org/protobuf",
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".", "./networksdk").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("modules that the SDK needs (-want +got):\n%s", diff)
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
