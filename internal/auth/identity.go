package auth

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// Identity is the role and the name that a certificate or a token gives its holder.
type Identity struct {
	// Domain is the trust domain of a certificate: the id of the cluster, if its
	// own authority signed it. Empty for a token.
	Domain string
	Role   authv1.Role
	// Name is a worker's node id or a person's name. A manager daemon has that of
	// its role.
	Name string
}

// MaxName is the greatest length of a name.
const MaxName = 64

// Managers are the roles of manager daemons, by the daemons' names.
func Managers() map[string]authv1.Role {
	return map[string]authv1.Role{
		"apid": authv1.Role_APID, "orchestratord": authv1.Role_ORCHESTRATORD, "allocatord": authv1.Role_ALLOCATORD,
		"schedulerd": authv1.Role_SCHEDULERD, "dispatcherd": authv1.Role_DISPATCHERD,
	}
}

// IsManager reports whether a role is one of a manager daemon.
func IsManager(r authv1.Role) bool { return r >= authv1.Role_APID && r <= authv1.Role_DISPATCHERD }

// IsPerson reports whether a role is one of people: viewer, operator or admin.
func IsPerson(r authv1.Role) bool { return r >= authv1.Role_VIEWER && r <= authv1.Role_ADMIN }

// RoleName writes a role as people do: "viewer".
func RoleName(r authv1.Role) string { return strings.ToLower(r.String()) }

// PersonRole reads the role of a person.
func PersonRole(name string) (authv1.Role, error) {
	r := authv1.Role(authv1.Role_value[strings.ToUpper(name)])
	if !IsPerson(r) || name != RoleName(r) {
		return 0, fmt.Errorf("role %q is none of viewer, operator, admin", name)
	}
	return r, nil
}

// ValidName returns an error if the name of a node or person, or a trust domain, cannot be
// part of the URI.
func ValidName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("name %q does not have 1 to %d characters", name[:min(len(name), MaxName)], MaxName)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return fmt.Errorf("name %q has other characters than letters, digits, dots, dashes and underscores", name)
		}
	}
	if name == "." || name == ".." {
		return fmt.Errorf("invalid name %q", name)
	}
	return nil
}

// URI is how a certificate states the identity, a SPIFFE id:
//
//	spiffe://<domain>/worker/<node id>
//	spiffe://<domain>/manager/<daemon>
//	spiffe://<domain>/user/<role>/<name>
func (i Identity) URI() *url.URL {
	path := "/user/" + RoleName(i.Role) + "/" + i.Name
	switch {
	case i.Role == authv1.Role_WORKER:
		path = "/worker/" + i.Name
	case IsManager(i.Role):
		path = "/manager/" + RoleName(i.Role)
	}
	return &url.URL{Scheme: "spiffe", Host: i.Domain, Path: path}
}

// String names the identity in logs and messages.
func (i Identity) String() string {
	switch {
	case i.Role == authv1.Role_WORKER:
		return "worker " + i.Name
	case IsManager(i.Role):
		return RoleName(i.Role)
	case IsPerson(i.Role):
		return RoleName(i.Role) + " " + i.Name
	default:
		return "unauthenticated"
	}
}

// ParseURI parses the form that URI writes, and no other.
func ParseURI(u *url.URL) (Identity, error) {
	wrong := func() (Identity, error) {
		return Identity{}, fmt.Errorf("%q is not a Muster identity: worker/<node id>, manager/<daemon> or user/<role>/<name> in a trust domain", u)
	}
	id := Identity{Domain: u.Host}
	kind, rest, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok {
		return wrong()
	}
	switch kind {
	case "worker":
		id.Role, id.Name = authv1.Role_WORKER, rest
	case "manager":
		id.Role, id.Name = Managers()[rest], rest
	case "user":
		role, name, _ := strings.Cut(rest, "/")
		r, err := PersonRole(role)
		if err != nil {
			return wrong()
		}
		id.Role, id.Name = r, name
	}
	if id.Role == authv1.Role_ROLE_UNSPECIFIED || ValidName(id.Domain) != nil || ValidName(id.Name) != nil || id.URI().String() != u.String() {
		return wrong()
	}
	return id, nil
}

var errNoIdentity = errors.New("the certificate does not state an identity of Muster: one URI spiffe://... among its subject's alternative names")

// FromCertificate reads the identity that a certificate states.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	uris := slices.DeleteFunc(slices.Clone(c.URIs), func(u *url.URL) bool { return u.Scheme != "spiffe" })
	if len(uris) != 1 {
		return Identity{}, errNoIdentity
	}
	return ParseURI(uris[0])
}
