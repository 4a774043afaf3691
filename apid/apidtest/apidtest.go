// Package apidtest holds what tests of several packages of apid share.
package apidtest

import (
	"slices"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// WebSpec returns a spec of a service that is accepted.
func WebSpec(name string) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{Name: name, Task: &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Image: "nginx"}},
	}}
}

// Must takes the result of a call. The function that it returns fails the test if there
// was an error.
func Must[R any](response R, err error) func(testing.TB) R {
	return func(t testing.TB) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
}

// WantCode checks an error's code, and that it names fields.
func WantCode(t testing.TB, err error, code codes.Code, fields ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("error is %v, want %v", err, code)
	}
	var named []string
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.FieldViolations {
				named = append(named, v.Field)
			}
		}
	}
	for _, field := range fields {
		if !slices.Contains(named, field) {
			t.Errorf("error names %q, want %q among them", named, field)
		}
	}
}
