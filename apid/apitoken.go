package apid

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
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/store"
)

// maxTokens bounds how many there are: every apid holds all of them.
const maxTokens = 10_000

var errUnknownToken = errors.New("there is no such token")

// recognise finds out whose token it is. While the store is away that is judged
// by what was known last.
func (d *Daemon) recognise(ctx context.Context, token string) (auth.Identity, error) {
	id, ok := auth.TokenID(token)
	if !ok {
		return auth.Identity{}, errUnknownToken
	}
	if err := d.ready(ctx); err != nil {
		return auth.Identity{}, err
	}
	e, ok := d.tables.Tokens.Get(d.store.Snapshot(), id)
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

func (c *control) CreateToken(ctx context.Context, req *musterv1.CreateTokenRequest) (*musterv1.CreateTokenResponse, error) {
	if err := c.ready(ctx); err != nil {
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
	record := &recordv1.Token{Name: req.Name, Role: role, CreatedAt: now.UnixMilli(), CreatedBy: by(ctx)}
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
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err = c.update(ctx, func(tx *store.Tx) error {
		n := 0
		for range c.tables.Tokens.Scan(tx, "") {
			n++
		}
		if n >= maxTokens {
			return status.Errorf(codes.ResourceExhausted, "there are %d tokens already: remove some", n)
		}
		c.tables.Tokens.Put(tx, id, record)
		return nil
	})
	if err != nil {
		return nil, c.fail("create token", err)
	}
	c.log.Info("token is created", zap.String("id", id), zap.String("name", record.Name), zap.String("role", req.Role), zap.String("by", record.CreatedBy))
	return &musterv1.CreateTokenResponse{Token: tokenMessage(id, record), Secret: token}, nil
}

func (c *control) ListTokens(ctx context.Context, _ *musterv1.ListTokensRequest) (*musterv1.ListTokensResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	resp := &musterv1.ListTokensResponse{}
	for e := range c.tables.Tokens.Scan(c.store.Snapshot(), "") {
		resp.Tokens = append(resp.Tokens, tokenMessage(e.Key, e.Value))
	}
	return resp, nil
}

func (c *control) RemoveToken(ctx context.Context, req *musterv1.RemoveTokenRequest) (*musterv1.RemoveTokenResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := c.writing(ctx)
	defer cancel()
	err := c.update(ctx, func(tx *store.Tx) error {
		if _, ok := c.tables.Tokens.Get(tx, req.Token); !ok {
			return notFound("token", req.Token)
		}
		c.tables.Tokens.Delete(tx, req.Token)
		return nil
	})
	if err != nil {
		return nil, c.fail("remove token", err)
	}
	c.log.Info("token is removed", zap.String("id", req.Token), zap.String("by", by(ctx)))
	return &musterv1.RemoveTokenResponse{}, nil
}

// by names who called.
func by(ctx context.Context) string {
	if caller, ok := auth.CallerOf(ctx); ok {
		return caller.Identity.String()
	}
	return ""
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
