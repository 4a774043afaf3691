package auth

import (
	"context"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// AdmitREST admits or refuses an HTTP request that represents a call of a method.
func (g *Guard) AdmitREST(r *http.Request, method string) (context.Context, error) {
	if g == nil {
		return r.Context(), nil
	}
	return g.admitCall(r.Context(), method, presentedBy(r))
}

// Page makes an HTTP handler serve only callers with a certificate of one of the roles. It
// accepts no tokens, because only apid knows them.
func (g *Guard) Page(next http.Handler, name string, roles ...authv1.Role) http.Handler {
	if g == nil {
		return next
	}
	rule := &authv1.Rule{Roles: roles}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := presentedBy(r)
		p.authorization, p.certificateOnly = nil, true
		ctx, err := g.admit(r.Context(), name, rule, p)
		if err != nil {
			code := http.StatusForbidden
			if status.Code(err) == codes.Unauthenticated {
				code = http.StatusUnauthorized
			}
			http.Error(w, status.Convert(err).Message(), code)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func presentedBy(r *http.Request) presented {
	return presented{address: r.RemoteAddr, tls: r.TLS, authorization: r.Header.Values("Authorization")}
}
