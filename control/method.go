package control

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"

	"github.com/creachadair/jrpc2"
)

// method is one row of the table: its name, what it does, and the Go types that the schema is made from.
type method struct {
	name, summary  string
	params, result reflect.Type
	run            func(ctx context.Context, r *jrpc2.Request) (any, error)
}

// call makes a row from a typed function. Unknown parameters are refused: an ignored one would be a wish not heard.
func call[P, R any](name, summary string, fn func(context.Context, P) (R, error)) method {
	return method{name: name, summary: summary, params: reflect.TypeFor[P](), result: reflect.TypeFor[R](),
		run: func(ctx context.Context, r *jrpc2.Request) (any, error) {
			var p P
			if r.HasParams() {
				if err := r.UnmarshalParams(jrpc2.StrictFields(&p)); err != nil {
					return nil, jrpc2.Errorf(jrpc2.InvalidParams, "parameters of %s: %s", name, reason(err))
				}
			}
			return fn(ctx, p)
		}}
}

// reason is what is wrong with the parameters: the library keeps it apart from its message.
func reason(err error) string {
	var r *jrpc2.Error
	var text string
	if errors.As(err, &r) && json.Unmarshal(r.Data, &text) == nil {
		return strings.TrimPrefix(text, "json: ")
	}
	return err.Error()
}

// long makes a row for a call that waits for others: it ends when the node does, with what was reached by then.
func long[P, R any](name, summary string, fn func(context.Context, P) (R, error)) method {
	return call(name, summary, func(ctx context.Context, p P) (R, error) {
		ctx, done := ending(ctx)
		defer done()
		return fn(ctx, p)
	})
}
