// Package tokens serves the API tokens of people and of programs that act for
// people: it recognises them, creates them and removes them.
package tokens

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/store"
)

// maxTokens bounds the number of tokens: every apid holds all of them.
const maxTokens = 10_000

var errUnknownToken = errors.New("there is no such token")

// Service serves the API tokens of one replica.
type Service struct{ backend *backend.Backend }

// New returns the service.
func New(b *backend.Backend) *Service { return &Service{b} }

// Recognise returns the identity that a token stands for. While the store is away it
// decides by the tokens that were known last.
func (s *Service) Recognise(ctx context.Context, token string) (auth.Identity, error) {
	id, ok := auth.TokenID(token)
	if !ok {
		return auth.Identity{}, errUnknownToken
	}
	if err := s.backend.Ready(ctx); err != nil {
		return auth.Identity{}, err
	}
	e, ok := s.backend.Tables.Tokens.Get(s.backend.Snapshot(), id)
	if !ok || !auth.TokenMatches(token, e.Value.Hash) {
		return auth.Identity{}, errUnknownToken
	}
	if ends := e.Value.ExpiresAt; ends > 0 && time.Now().UnixMilli() >= ends {
		return auth.Identity{}, status.Errorf(codes.Unauthenticated, "the token %s has expired", id)
	}
	if !auth.IsPerson(e.Value.Role) {
		return auth.Identity{}, errUnknownToken
	}
	return auth.Identity{Role: e.Value.Role, Name: e.Value.Name}, nil
}

// CreateToken makes a token.
func (s *Service) CreateToken(ctx context.Context, req *musterv1.CreateTokenRequest) (*musterv1.CreateTokenResponse, error) {
	if err := s.backend.Ready(ctx); err != nil {
		return nil, err
	}
	now := time.Now()
	var report validate.Report
	if err := auth.ValidName(req.Name); err != nil {
		report.Invalid("name", "%v", err)
	}
	role, err := auth.PersonRole(req.Role)
	if err != nil {
		report.Invalid("role", "%v", err)
	}
	record := &recordv1.Token{Name: req.Name, Role: role, CreatedAt: now.UnixMilli(), CreatedBy: backend.Caller(ctx)}
	if req.ExpiresAt != nil {
		if record.ExpiresAt = req.ExpiresAt.AsTime().UnixMilli(); !req.ExpiresAt.IsValid() || record.ExpiresAt <= record.CreatedAt {
			report.Invalid("expiresAt", "is not in the future")
		}
	}
	if err := report.Err(); err != nil {
		return nil, err
	}
	id, token, hash := auth.NewToken()
	record.Hash = hash
	ctx, cancel := s.backend.Writing(ctx)
	defer cancel()
	err = s.backend.Update(ctx, func(tx *store.Tx) error {
		n := 0
		for range s.backend.Tables.Tokens.Scan(tx, "") {
			n++
		}
		if n >= maxTokens {
			return status.Errorf(codes.ResourceExhausted, "there are %d tokens already: remove some", n)
		}
		s.backend.Tables.Tokens.Put(tx, id, record)
		return nil
	})
	if err != nil {
		return nil, s.backend.Fail("create token", err)
	}
	s.backend.Log.Info("token is created", zap.String("id", id), zap.String("name", record.Name), zap.String("role", req.Role), zap.String("by", record.CreatedBy))
	return &musterv1.CreateTokenResponse{Token: tokenMessage(id, record), Secret: token}, nil
}

// ListTokens returns all tokens.
func (s *Service) ListTokens(ctx context.Context, _ *musterv1.ListTokensRequest) (*musterv1.ListTokensResponse, error) {
	if err := s.backend.Ready(ctx); err != nil {
		return nil, err
	}
	resp := &musterv1.ListTokensResponse{}
	for e := range s.backend.Tables.Tokens.Scan(s.backend.Snapshot(), "") {
		resp.Tokens = append(resp.Tokens, tokenMessage(e.Key, e.Value))
	}
	return resp, nil
}

// RemoveToken removes a token.
func (s *Service) RemoveToken(ctx context.Context, req *musterv1.RemoveTokenRequest) (*musterv1.RemoveTokenResponse, error) {
	if err := s.backend.Ready(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := s.backend.Writing(ctx)
	defer cancel()
	err := s.backend.Update(ctx, func(tx *store.Tx) error {
		if _, ok := s.backend.Tables.Tokens.Get(tx, req.Token); !ok {
			return backend.NotFound("token", req.Token)
		}
		s.backend.Tables.Tokens.Delete(tx, req.Token)
		return nil
	})
	if err != nil {
		return nil, s.backend.Fail("remove token", err)
	}
	s.backend.Log.Info("token is removed", zap.String("id", req.Token), zap.String("by", backend.Caller(ctx)))
	return &musterv1.RemoveTokenResponse{}, nil
}

func tokenMessage(id string, r *recordv1.Token) *musterv1.ApiToken {
	m := &musterv1.ApiToken{Id: id, Name: r.Name, CreatedBy: r.CreatedBy, CreatedAt: timestamppb.New(time.UnixMilli(r.CreatedAt))}
	if r.Role != authv1.Role_ROLE_UNSPECIFIED {
		m.Role = auth.RoleName(r.Role)
	}
	if r.ExpiresAt > 0 {
		m.ExpiresAt = timestamppb.New(time.UnixMilli(r.ExpiresAt))
	}
	return m
}
