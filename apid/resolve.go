package apid

import "github.com/musterhq/muster/apid/objects"

// resolve finds the one object that a reference means, and returns what of it is
// asked for. Kind names such objects to people.
func resolve[O, V any](c *control, kind, ref string, find func(*objects.Reader, string) (*O, error), of func(*objects.Reader, *O) V) (V, error) {
	var (
		value V
		found *O
		err   error
	)
	c.view.Read(func(r *objects.Reader) {
		if found, err = find(r, ref); found != nil {
			value = of(r, found)
		}
	})
	if err != nil {
		return value, c.fail("resolve "+kind, err)
	}
	if found == nil {
		return value, notFound(kind, ref)
	}
	return value, nil
}
