'use strict';
// Finds and loads the handler and the warmup beside it: { handler, warmup }, or a
// promise of that for some ES modules.

const fs = require('fs');

const ENDINGS = ['.mjs', '.js', '.cjs'];

class LoadError extends Error {
  constructor(type, message) {
    super(message);
    this.name = type;
    this.stack = '';
  }
}

function find(code, handler, module) {
  for (const base of new Set([module, module.replaceAll('.', '/')])) {
    for (const ending of ENDINGS) {
      const path = `${code}/${base}${ending}`;
      if (fs.existsSync(path)) return path;
    }
  }
  let names = [];
  try { names = fs.readdirSync(code).filter((n) => !n.startsWith('.')).sort(); } catch { /* shown as nothing */ }
  const shown = names.slice(0, 12).join(', ') + (names.length > 12 ? ', …' : '');
  throw new LoadError('Runtime.ImportModuleError',
    `handler ${handler} needs ${module}.mjs, .js or .cjs, which is not in the function's code (it has: ${shown || 'nothing'})`);
}

/** Tells whether a .js file is an ES module: by package.json, else by its text. */
function isModule(code, path) {
  for (let dir = path.slice(0, path.lastIndexOf('/')); dir.length >= code.length; dir = dir.slice(0, dir.lastIndexOf('/'))) {
    let text;
    try { text = fs.readFileSync(`${dir}/package.json`, 'utf8'); } catch { continue; }
    let type;
    try { ({ type } = JSON.parse(text)); } catch { break; }
    if (type === 'module') return true;
    if (type === 'commonjs') return false;
    break;
  }
  return /^[ \t]*(import[ \t{*"']|export[ \t{*])/m.test(fs.readFileSync(path, 'utf8'));
}

function pick(exports, handler, attribute) {
  const found = exports?.[attribute] ?? exports?.default?.[attribute];
  if (typeof found === 'function') {
    const warmup = exports.warmup ?? exports.default?.warmup;
    return { handler: found, warmup: typeof warmup === 'function' && warmup !== found ? warmup : null };
  }
  const names = Object.keys(exports ?? {}).filter((n) => typeof exports[n] === 'function');
  throw new LoadError('Runtime.HandlerNotFound', found === undefined
    ? `handler ${handler}: the module does not export ${attribute} (functions it exports: ${names.slice(0, 12).join(', ') || 'none'})`
    : `handler ${handler}: ${attribute} is of type ${typeof found}, not a function`);
}

/** Loads an ES module without the warning that some versions print for it. */
function requireQuietly(path) {
  const { emitWarning } = process;
  process.emitWarning = (warning, ...rest) => {
    if (rest[0] !== 'ExperimentalWarning') emitWarning.call(process, warning, ...rest);
  };
  try {
    return require(path);
  } finally {
    process.emitWarning = emitWarning;
  }
}

module.exports = function load(code, handler) {
  code = code.replace(/\/+$/, '');
  const dot = handler.lastIndexOf('.');
  const attribute = handler.slice(dot + 1);
  const path = find(code, handler, handler.slice(0, dot));
  if (path.endsWith('.cjs') || (path.endsWith('.js') && !isModule(code, path))) {
    return pick(require(path), handler, attribute);
  }
  if (process.features.require_module) {
    // Three times as fast as import(); a module with a top-level await needs that.
    try {
      return pick(requireQuietly(path), handler, attribute);
    } catch (e) {
      if (e?.code !== 'ERR_REQUIRE_ASYNC_MODULE' && e?.code !== 'ERR_REQUIRE_CYCLE_MODULE') throw e;
    }
  }
  const { href } = require('url').pathToFileURL(path);
  return import(href).then((exports) => pick(exports, handler, attribute), (e) => {
    if (e instanceof SyntaxError && path.endsWith('.js') && /import statement|'export'/.test(e.message)) {
      e.message += '; name the file .mjs or put "type": "module" into package.json to use ES modules';
    }
    throw e;
  });
};
