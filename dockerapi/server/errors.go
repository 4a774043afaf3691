package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/common"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is an answer other than success.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// Errorf returns an Error.
func Errorf(status int, format string, a ...any) error {
	return &Error{Status: status, Message: fmt.Sprintf(format, a...)}
}

// BadRequest returns an error of the client's.
func BadRequest(err error) error { return &Error{Status: http.StatusBadRequest, Message: err.Error()} }

// Of turns an error of the control API about one object into Docker's words, which clients
// match. Kind is Docker's word for the kind: "service".
func Of(err error, kind, name string) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.NotFound:
		return Errorf(http.StatusNotFound, "%s %s not found", kind, name)
	case codes.AlreadyExists:
		switch kind {
		case "service":
			return Errorf(http.StatusConflict, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service %s already exists", name)
		case "network":
			return Errorf(http.StatusConflict, "network with name %s already exists", name)
		}
		return Errorf(http.StatusConflict, "rpc error: code = AlreadyExists desc = %s %s already exists", kind, name)
	case codes.Aborted:
		return Errorf(http.StatusInternalServerError, "rpc error: code = Unknown desc = update out of sequence")
	}
	return err
}

// statusOf returns the answer for an error.
func statusOf(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{http.StatusGatewayTimeout, "there was no answer in time"}
	}
	s, ok := status.FromError(err)
	if !ok {
		return &Error{http.StatusInternalServerError, err.Error()}
	}
	return &Error{httpStatus(s.Code()), message(s)}
}

// httpStatus is Docker's own table, except for what concerns the credentials of this daemon:
// they are not the client's.
func httpStatus(code codes.Code) int {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists:
		return http.StatusConflict
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable, codes.Unauthenticated:
		return http.StatusServiceUnavailable
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// message returns the text for people: which fields are wrong, if that is it.
func message(s *status.Status) string {
	switch s.Code() {
	case codes.Unauthenticated:
		return "the credentials that dockerapid has for the control API are not valid: " + s.Message()
	case codes.PermissionDenied:
		return "the credentials that dockerapid has for the control API do not allow this: " + s.Message()
	}
	text := s.Message()
	for _, d := range s.Details() {
		bad, ok := d.(*errdetails.BadRequest)
		if !ok || len(bad.GetFieldViolations()) == 0 {
			continue
		}
		text = ""
		for i, v := range bad.GetFieldViolations() {
			if i > 0 {
				text += "; "
			}
			text += v.GetField() + ": " + v.GetDescription()
		}
	}
	return text
}

// WriteError answers with an error as Docker's clients read it.
func WriteError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// There is nowhere to report that the client is gone.
	_ = json.NewEncoder(w).Encode(common.ErrorResponse{Message: text})
}
