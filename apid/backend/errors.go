package backend

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/apid/validate"
)

// NotFound says that a reference means no object of a kind.
func NotFound(kind, ref string) error {
	if ref == "" {
		return validate.Field(kind, "is required: an id, a name, or a unique prefix of an id")
	}
	s, err := status.Newf(codes.NotFound, "there is no %s %q", kind, Clip(ref)).
		WithDetails(&errdetails.ResourceInfo{ResourceType: kind, ResourceName: Clip(ref)})
	if err != nil {
		return status.Errorf(codes.NotFound, "there is no such %s", kind)
	}
	return s.Err()
}

// NameTaken says that another object of a kind has a name.
func NameTaken(kind, name string) error {
	s, err := status.Newf(codes.AlreadyExists, "a %s called %q already exists; names are compared without regard to case", kind, name).
		WithDetails(&errdetails.ResourceInfo{ResourceType: kind, ResourceName: name})
	if err != nil {
		return status.Errorf(codes.AlreadyExists, "a %s of this name already exists", kind)
	}
	return s.Err()
}

// Stale refuses an update that was decided on another version than the current
// one.
func Stale(kind, name string, decided, current uint64) error {
	return status.Errorf(codes.Aborted,
		"%s %q is at version %d, and the update was decided on version %d: read it again, and decide again", kind, name, current, decided)
}

// Clip keeps text that a user sent from filling an error.
func Clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most]) + "..."
}
