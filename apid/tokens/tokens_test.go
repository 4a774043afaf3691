package tokens_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/tokens"
)

func TestTokenIsRecognisedUntilItExpiresOrIsRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := tokens.New(backendtest.Start(t))
		create := func(name string, expires time.Duration) *musterv1.CreateTokenResponse {
			t.Helper()
			req := &musterv1.CreateTokenRequest{Name: name, Role: "operator"}
			if expires > 0 {
				req.ExpiresAt = timestamppb.New(time.Now().Add(expires))
			}
			resp, err := s.CreateToken(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		ci, short := create("ci", 0), create("short", time.Hour)
		for _, token := range []*musterv1.CreateTokenResponse{ci, short} {
			id, err := s.Recognise(t.Context(), token.Secret)
			if err != nil || id.Role != authv1.Role_OPERATOR || id.Name != token.Token.Name {
				t.Errorf("token of %s stands for %v, %v", token.Token.Name, id, err)
			}
		}
		time.Sleep(time.Hour)
		if _, err := s.Recognise(t.Context(), short.Secret); status.Code(err) != codes.Unauthenticated {
			t.Errorf("expired token: %v, want Unauthenticated", err)
		}
		list, err := s.ListTokens(t.Context(), &musterv1.ListTokensRequest{})
		if err != nil || len(list.Tokens) != 2 {
			t.Errorf("list: %v, %v", list, err)
		}
		if _, err := s.RemoveToken(t.Context(), &musterv1.RemoveTokenRequest{Token: ci.Token.Id}); err != nil {
			t.Fatal(err)
		}
		if id, err := s.Recognise(t.Context(), ci.Secret); err == nil {
			t.Errorf("a removed token stands for %v", id)
		}
		if _, err := s.RemoveToken(t.Context(), &musterv1.RemoveTokenRequest{Token: ci.Token.Id}); status.Code(err) != codes.NotFound {
			t.Errorf("remove again: %v, want NotFound", err)
		}
		if id, err := s.Recognise(t.Context(), ci.Secret[:len(ci.Secret)-1]+"x"); err == nil {
			t.Errorf("another secret stands for %v", id)
		}
	})
}

func TestTokenRequestsAreChecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := tokens.New(backendtest.Start(t))
		for name, req := range map[string]*musterv1.CreateTokenRequest{
			"no name":      {Role: "viewer"},
			"unknown role": {Name: "ci", Role: "root"},
			"worker":       {Name: "ci", Role: "worker"},
			"past":         {Name: "ci", Role: "viewer", ExpiresAt: timestamppb.New(time.Now().Add(-time.Second))},
		} {
			if _, err := s.CreateToken(t.Context(), req); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s: %v, want InvalidArgument", name, err)
			}
		}
	})
}
