package bounds_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/bounds"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/payload"
)

func TestInvalidIDsAreRefused(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"n1":                       "",
		strings.Repeat("n", 64):    "",
		"":                         "node_id is empty",
		strings.Repeat("n", 65):    "node_id has 65 characters, at most 64 are allowed",
		"n/1":                      "slash",
		"n 1":                      "space",
		"n\n1":                     "unprintable",
		"n\x1b[2J":                 "unprintable",
		"n\u00a0with a wide space": "space",
	} {
		err := bounds.CheckID("node_id", id)
		switch {
		case want == "" && err != nil:
			t.Errorf("id %q: %v", id, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("id %q: error %v, want %q", id, err, want)
		}
	}
}

func TestClipDoesNotCutACharacter(t *testing.T) {
	t.Parallel()
	for n := range 9 {
		got := bounds.Clip("aä€b", n)
		if len(got) > n || !utf8.ValidString(got) || !strings.HasPrefix("aä€b", got) {
			t.Errorf("clipped to %d bytes: %q", n, got)
		}
	}
	if got := bounds.Clip("aä€b", 100); got != "aä€b" {
		t.Errorf("a short text becomes %q", got)
	}
}

func TestDescriptionAtItsLimitsIsAccepted(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("x", nodereport.MaxName)
	d := &musterv1.NodeDescription{Hostname: text, Machine: &musterv1.Machine{Id: text}}
	for range nodereport.MaxExecutors {
		d.Executors = append(d.Executors, &musterv1.ExecutorDescription{
			Name: text, Version: text, Checksum: text, Kinds: []string{"process"}, Capabilities: []string{text},
		})
	}
	if err := bounds.CheckDescription(d); err != nil {
		t.Error(err)
	}
	d.Executors[3].Version += "x"
	err := bounds.CheckDescription(d)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "description.executors[3].version has 257 bytes") {
		t.Errorf("error %v, want one that names the field", err)
	}
	if err := bounds.CheckDescription(nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("missing description: %v", err)
	}
}

func TestOwnOpinionOfASchemaDoesNotCount(t *testing.T) {
	t.Parallel()
	d := &musterv1.NodeDescription{Executors: []*musterv1.ExecutorDescription{
		{PayloadSchema: `{"type":"object"}`, PayloadSchemaError: "said the worker", Message: strings.Repeat("ä", nodereport.MaxExecutorMessage)},
		{PayloadSchema: `{"not":{}}`},
	}}
	bounds.CheckSchemas(d, payload.NewSchemas())
	if e := d.Executors[0]; e.PayloadSchemaError != "" || len(e.Message) > nodereport.MaxExecutorMessage || !utf8.ValidString(e.Message) {
		t.Errorf("executor with a good schema: %q, message of %d bytes", e.PayloadSchemaError, len(e.Message))
	}
	if e := d.Executors[1]; e.PayloadSchemaError == "" {
		t.Error("a schema that refuses everything has no error")
	}
}
